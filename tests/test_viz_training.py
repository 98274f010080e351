"""The training page follows a run that is still training, and says when it has stopped or finished."""

import json
import os
import shutil
import time

import fakes
import pytest
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


def test_the_curves_grow_while_it_trains(run):
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is missing: pip install playwright")
    if shutil.which("chromium") is None:
        pytest.skip("chromium is missing: apt-get install chromium")
    address = serve([run], open=False, block=False)
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        tab = chromium.new_page()
        tab.goto(address + "#pane=training")
        state = tab.get_by_test_id("training-state")
        sync_api.expect(tab.locator(".scatterlayer .trace")).to_have_count(5, timeout=20_000)
        sync_api.expect(state).to_contain_text("training now")
        sync_api.expect(state).to_contain_text("17 %")
        write(run, 30)
        sync_api.expect(state).to_contain_text("50 %", timeout=15_000)
        points = "document.querySelector('[data-testid=training-plot]').data[0].x.length"
        assert tab.evaluate(points) == 30
        write(run, 60)
        write_json(run / "cfg.json", {"architecture": "topk"})
        sync_api.expect(state).to_have_text("finished", timeout=15_000)
        chromium.close()
