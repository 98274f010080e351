"""The training page follows a run that is still training, and says when it has stopped or finished."""

import json
import os
import shutil
import time

import fakes
import pytest
from fake_live import launched
from unweave.saes.io import write_json
from unweave.viz import serve
from unweave.viz.answers import answer
from unweave.viz.things import open_things


@pytest.fixture
def run(tmp_path):
    """A run at 10 of 60 log lines."""
    folder = tmp_path / "sae"
    folder.mkdir()
    write_json(folder / "config.json", {"tokens": 60 * 4096, "site": ["blocks.3.hook_resid_post"]})
    write(folder, 10)
    return folder


def write(folder, lines):
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in fakes.rows(60)[:lines]))


def test_the_answer_is_the_run_as_it_is_now(run):
    things = open_things([run])
    first = answer(things, "runs/0")
    assert (first["state"], first["rows"]) == ("training", 10)
    assert first["share"] == pytest.approx(10 / 60, rel=0.01)
    assert first["left_s"] == pytest.approx(50 * 4096 / 9400, rel=0.01)
    write(run, 25)
    with (run / "metrics.jsonl").open("a") as log:
        log.write('{"step": 26, "tok')  # a line that is being written
    assert answer(things, "runs/0")["rows"] == 25
    write_json(run / "cfg.json", {"architecture": "topk"})
    assert answer(things, "runs/0")["state"] == "finished"


def test_a_run_that_writes_no_more_has_stopped(run):
    long_ago = time.time() - 3600
    for path in run.iterdir():
        os.utime(path, (long_ago, long_ago))
    assert answer(open_things([run]), "runs/0")["state"] == "stopped"


def test_a_run_whose_folder_has_gone_is_shown_as_it_was(run):
    things = open_things([run])
    shutil.rmtree(run)
    assert answer(things, "runs/0")["rows"] == 10


def test_nonsense_in_the_log_is_not_a_number(run):
    (run / "metrics.jsonl").write_text('{"step": 1, "tokens": "many", "tokens_per_s": null, "loss": NaN}\n')
    found = answer(open_things([run]), "runs/0")
    assert found["share"] is None
    assert found["left_s"] is None
    json.dumps(found, allow_nan=False)


# Remembers whatever was written in the pane's sign of work.
HEARD = """window.heard = []; addEventListener('DOMContentLoaded', () => new MutationObserver(() => {
  const told = document.querySelector('[data-testid=loading]');
  if (told) window.heard.push(told.textContent);
}).observe(document.body, { subtree: true, childList: true, characterData: true }));"""


@pytest.fixture
def waited(run):
    """A page whose clock stands still until it is moved, and the requests for the run, which nobody answers."""
    held = []
    with launched() as browser:
        tab = browser.new_page()
        tab.clock.install(time=0)
        tab.clock.pause_at(1000)
        tab.add_init_script(HEARD)
        tab.route("**/api/runs/0", lambda route: held.append(route))
        tab.goto(serve([run], open=False, block=False))
        tab.wait_for_selector("body[data-ready=yes]")
        tab.clock.run_for(1000)
        assert tab.evaluate("window.heard") == []
        yield tab, held


@pytest.mark.parametrize("ending", ["drawn", "failed"])
def test_a_slow_pane_says_that_it_loads_and_a_quick_one_never(waited, ending):
    tab, held = waited
    with tab.expect_request("**/api/runs/0"):
        tab.get_by_test_id("tab-training").click()
    tab.clock.run_for(240)
    assert tab.evaluate("window.heard") == []
    tab.clock.run_for(20)
    assert tab.evaluate("window.heard") == [""]  # the region stands before its words, so that they are announced
    tab.clock.run_for(100)
    loading = tab.get_by_role("status").get_by_text("Loading…")
    assert loading.is_visible() and tab.locator("#pane > *").count() == 1
    if ending == "drawn":
        held[0].continue_()
        tab.get_by_test_id("training-state").wait_for()
    else:
        held[0].abort()
        tab.get_by_text("This view could not be drawn").wait_for()
    assert loading.count() == 0


def test_a_slow_pane_that_was_left_neither_loads_nor_shows(waited):
    tab, held = waited
    tab.evaluate("document.querySelector('[data-testid=view-overview]').dataset.old = 'yes'")
    with tab.expect_request("**/api/runs/0"):
        tab.evaluate("location.hash = 'pane=training'")
    tab.evaluate("location.hash = 'pane=overview'")
    tab.wait_for_selector("[data-testid=view-overview]:not([data-old])")
    tab.clock.run_for(1000)
    assert tab.evaluate("window.heard") == []
    with tab.expect_response("**/api/runs/0") as reply:
        held[0].continue_()
    reply.value.finished()
    tab.clock.run_for(1000)
    assert tab.get_by_test_id("view-overview").is_visible() and tab.get_by_test_id("view-training").count() == 0


def test_many_numbers_of_a_demo_stand_folded_by_their_parts(run, tmp_path):
    numbers = {"seconds": 7} | {f"part {place}": {f"n{item}": item for item in range(20)} for place in range(3)}
    (tmp_path / "dictionaries").mkdir()
    shutil.move(run, tmp_path / "dictionaries" / "sae")
    write_json(tmp_path / "demo.json", numbers)
    with launched() as browser:
        tab = browser.new_page()
        tab.goto(serve([tmp_path], open=False, block=False))
        shown = tab.get_by_test_id("numbers")
        shown.wait_for()
        assert shown.inner_text().split() == ["seconds", "7", *"part 0 part 1 part 2".split()]
        shown.get_by_text("part 1").click()
        assert shown.locator("tr:visible").count() == 1 + 20
        assert shown.get_by_role("row", name="n19").filter(visible=True).inner_text().split() == ["n19", "19"]


def test_the_curves_grow_while_it_trains(run):
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is missing: pip install playwright")
    address = serve([run], open=False, block=False)
    with launched() as chromium:
        tab = chromium.new_page()
        tab.goto(address + "#pane=training")
        state = tab.get_by_test_id("training-state")
        sync_api.expect(tab.locator(".scatterlayer .trace")).to_have_count(5, timeout=60_000)
        sync_api.expect(state).to_contain_text("training now")
        sync_api.expect(state).to_contain_text("17 %")
        sync_api.expect(tab.locator(".tile", has_text="dead share")).to_contain_text("%")
        write(run, 30)
        sync_api.expect(state).to_contain_text("50 %", timeout=15_000)
        points = "document.querySelector('[data-testid=training-plot]').data[0].x.length"
        assert tab.evaluate(points) == 30
        write(run, 60)
        write_json(run / "cfg.json", {"architecture": "topk"})
        sync_api.expect(state).to_have_text("finished", timeout=15_000)
