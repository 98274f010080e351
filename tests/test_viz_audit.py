"""The page of an audit: what it says against the report and the transcript, on a server and as a file."""

import csv
import io
import json

import fake_audits
import fake_diffs
import fakes
import pytest
from fake_live import Desk
from unweave.saes import UserError
from unweave.viz import write_page
from unweave.viz.answers import answer, audits, frozen
from unweave.viz.things import Things, open_things


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    base = tmp_path_factory.mktemp("audits")
    fake_audits.audit(base / "finished")
    fake_audits.audit(base / "stopped", is_finished=False)
    fake_audits.audit(base / "hostile", hostile=True)
    return base


@pytest.fixture(scope="module")
def things(folder) -> Things:
    return open_things([folder / name for name in ("finished", "stopped", "hostile")])


def test_an_audit_is_opened_by_its_transcript(things, tmp_path):
    assert list(things.audits) == ["finished", "stopped", "hostile"]
    assert [each["is_finished"] for each in answer(things, "overview")["audits"]] == [True, False, True]
    assert open_things([things, fake_diffs.diff()]).audits.keys() == things.audits.keys()


def test_numbers_are_those_of_the_report_and_the_transcript(things):
    told = answer(things, "audits/0")
    assert [told[name] for name in ("supported", "open", "rejected", "calls", "failed")] == [
        1,
        1,
        1,
        fake_audits.CALLS,
        1,
    ]
    assert [each["evidence"] for each in told["findings"]] == [["r1", "r2"], [], ["r99"]]
    assert [line["ok"] for line in told["lines"]] == [True, True, False, True, True, True]
    assert told["about"]["budget"] == fake_audits.BUDGET


def test_a_call_is_told_whole(things):
    call = things.audits["finished"].calls[3]
    told = answer(things, "audits/0/calls/r4")
    assert told["given"] == call["arguments"] and told["reply"] == call["reply"]["result"]
    assert "expected more" in answer(things, "audits/0/calls/r3")["reply"]["message"]
    for path in ("audits/0/calls/r99", "audits/0/calls/constructor", "audits/9"):
        with pytest.raises(KeyError):
            answer(things, path)


def test_a_damaged_folder_is_refused(tmp_path):
    made = fake_audits.audit(tmp_path / "one")
    (made / "report.json").write_text(json.dumps({"format": "other"}))
    with pytest.raises(UserError, match="make the audit anew"):
        open_things([made])
    (made / "transcript.jsonl").write_text("{}\n{}\n")
    with pytest.raises(UserError, match="transcript"):
        open_things([made])


def test_a_page_carries_the_calls_that_are_cited_first(things, monkeypatch):
    monkeypatch.setattr(audits, "CARRIED", 3)
    paths = dict(frozen(Things(audits={"one": things.audits["finished"]})))
    assert {path for path in paths if "/calls/" in path} == {f"audits/0/calls/r{number}" for number in (1, 2, 3)}
    things.audits["finished"].report["notes"][0]["evidence"] = ["r6"]
    assert "audits/0/calls/r6" in dict(frozen(Things(audits={"one": things.audits["finished"]})))
    things.audits["finished"].report["notes"][0]["evidence"] = ["r2"]


@pytest.mark.parametrize("bad", [None, 7, "x", [], {}, [7], [{"evidence": 7}], {"a": 7}])
def test_a_report_of_nonsense_is_still_shown(things, bad):
    from unweave.viz.audits import Audit

    good = things.audits["finished"]
    broken = Audit(
        {**good.report, **dict.fromkeys(("findings", "notes", "summary", "workspace", "seed"), bad)}, {}, good.calls
    )
    json.dumps(answer(Things(audits={"one": broken}), "audits/0"), allow_nan=False)


def test_claims_unfold_to_the_results_that_they_cite(desk):
    desk.open("#pane=audit")
    claims = desk.id("finding")
    assert claims.count() == 3 and "It changes its answer" in claims.nth(0).inner_text()
    assert "cites r99, which is not in the transcript" in claims.nth(2).inner_text()
    claims.nth(0).locator("summary").nth(1).click()
    reply = claims.nth(0).locator("[data-call=r2]")
    reply.locator(".untrusted").first.wait_for()
    assert "what was said 2" in reply.inner_text() and "0.05, 0.2" in reply.inner_text()
    assert reply.locator(".untrusted").count() == 6
    desk.tab.reload()
    desk.id("finding").first.locator("[data-call=r2][open] .untrusted").first.wait_for()
    assert desk.tab.locator(".call[open]").count() == 1
    desk.press("Escape")
    assert desk.tab.locator(".call[open]").count() == 0
    desk.press("f")
    assert claims.count() == 1


def test_calls_are_found_and_saved(desk):
    desk.open("#pane=audit&audit_query=steer")
    assert desk.id("audit-calls").get_by_test_id("audit-call").count() == 2
    desk.open("#pane=audit&audit=1")
    assert "no report" in desk.id("audit-unfinished").inner_text()
    desk.open("#pane=audit").tab.locator(".exports > summary").click()
    with desk.tab.expect_download() as download:
        desk.id("export-csv").click()
    rows = list(csv.DictReader(io.StringIO(download.value.path().read_text("utf-8"))))
    assert [row["status"] for row in rows] == ["supported", "open", "rejected"] and rows[0]["evidence"] == "r1 r2"


def test_what_is_empty_or_long_can_be_read(desk):
    """A list of long texts has a line each, numbered as the replies number them; a text of nothing is said to be empty."""
    desk.open("#pane=audit")
    shown = desk.tab.evaluate(
        """() => {
          const box = document.body.appendChild(document.createElement("div"));
          const told = { long: ["a question of more than a few words", "b"], short: ["a", "b"], none: { untrusted: "" } };
          box.append(modules["auditReply.js"].replyView(told));
          const lists = [...box.querySelectorAll("ol")].map((list) => [list.start, list.childElementCount]);
          return [lists, box.querySelectorAll("tr")[1].innerText, getComputedStyle(box.querySelector(".untrusted"), "::before").content];
        }"""
    )
    assert shown == [[[0, 2]], "short\ta, b", '"empty"']


def test_keys_are_told_where_they_do_something(browser, folder, tmp_path):
    desk = Desk(browser, None, write_page(tmp_path / "page.html", [folder / "finished"]).as_uri()).open(
        "#pane=overview"
    )
    for key, told in (("2", "find a call"), ("1", "these keys")):
        desk.press(key)
        desk.id("view-audit" if key == "2" else "view-overview").wait_for()
        desk.press("?")
        said = desk.id("help").inner_text()
        assert told in said and "latents" not in said and said.count("\n/") == (key == "2")
        desk.press("Escape")
    desk.press("/")
    assert "pane=overview" in desk.tab.url
    desk.close()


def test_a_saved_page_shows_the_same(browser, address, things, tmp_path):
    texts, page = [], write_page(tmp_path / "page.html", things).as_uri()
    for place in (address, page):
        desk = Desk(browser, None, place, viewport={"width": 375, "height": 800}).open(
            "#pane=audit&audit=2&audit_call=r1"
        )
        desk.tab.locator(".untrusted").first.wait_for()
        texts.append(desk.id("view-audit").inner_text())
        assert fakes.HOSTILE[0] in texts[-1]
        assert desk.tab.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
        desk.close()
        assert not desk.wrong
    assert texts[0] == texts[1]
