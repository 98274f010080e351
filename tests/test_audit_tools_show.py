"""The tools behind `unweave show`: a base, documents and a transcript as `unweave mcp` has them, and what a busy server answers."""

import threading

import audit_diffing_toys as planted
import audit_tools_toys as toys_
import pytest
from starlette.testclient import TestClient
from unweave.audit.tools import Session, Workspace, read_transcript, replay
from unweave.saes import UserError
from unweave.viz import commands, display, server
from unweave.viz.live import Live
from unweave.viz.server import application
from unweave.viz.tools import Audited, Tools
from unweave.viz.turns import Turns


@pytest.fixture
def folders(tmp_path):
    """The store that was collected under the base, the dictionary's folder, and a folder of documents."""
    toys_.store()
    planted.dictionary().save(tmp_path / "planted")
    (tmp_path / "texts").mkdir()
    for number in range(10):
        (tmp_path / "texts" / f"{number}.txt").write_text(f"w5 w{number + 10} w6 w7")
    return [toys_.folder() / "store", tmp_path / "planted"]


def served(monkeypatch, *paths, **options):
    """What `show` serves, without a server."""
    found = {}
    monkeypatch.setattr(server, "serve", lambda things, *rest, **known: found.update(known, things=things))
    display.show(*paths, open=False, **options)
    live = Live(found["things"], found["model"])
    return TestClient(
        application(found["things"], "secret", live, found["audited"]), base_url="http://127.0.0.1:8000"
    ), live


def test_a_transcript_of_the_page_replays_on_the_same_folders(folders, tmp_path, monkeypatch):
    text, transcript = str(tmp_path / "texts"), tmp_path / "kept" / "t.jsonl"
    models = {"model": planted.tuned(), "base": planted.base()}
    client, _ = served(monkeypatch, *folders, text=text, transcript=transcript, **models)
    calls = {
        "list_models": {}, "top_features": {"text": "w5 w6"}, "search_data": {"query": "w12"},
        "diff_features": {"quick": True, "k": 3}, "chat": {"text": "w5", "tokens": 2},
    }  # fmt: skip
    replies = {name: client.post(f"/secret/api/tools/{name}", json=given).json() for name, given in calls.items()}
    assert all(reply["ok"] for reply in replies.values()), replies
    assert replies["list_models"]["result"]["dictionaries"][0]["dictionary"] == "planted"
    assert "base" in replies["top_features"]["result"]["features"][0]
    assert (replies["search_data"]["result"]["documents"], replies["search_data"]["result"]["of"]) == (1, 10)
    assert len(read_transcript(transcript).calls) == len(calls)
    found = replay(transcript, Workspace.open(folders, text=text, **models))
    assert found.equal and found.calls == len(calls), found


def test_show_tells_what_it_cannot_keep(folders, tmp_path):
    (tmp_path / "t.jsonl").write_text("something")
    with pytest.raises(UserError, match="new file for the transcript"):
        display.show(*folders, transcript=tmp_path / "t.jsonl")
    with pytest.raises(UserError, match="text"):
        display.show(*folders, text=tmp_path / "nowhere")
    for known in ({"base": "b"}, {"text": ("bundled",)}, {"transcript": tmp_path / "n.jsonl"}):
        with pytest.raises(UserError, match="where a server answers"):
            commands.show(tuple(folders), html=tmp_path / "page.html", **known)


def test_a_busy_server_says_so_and_writes_nothing_down(folders, tmp_path, monkeypatch):
    monkeypatch.setattr("unweave.viz.live.Turns", lambda: Turns(waiting=0))
    path = tmp_path / "t.jsonl"
    client, live = served(monkeypatch, *folders, transcript=path, model=planted.tuned())
    assert client.post("/secret/api/tools/budget", json={}).status_code == 200
    with live.lock:  # a job of the page
        busy = [
            client.post(f"/secret/api/tools/{name}", json=given)
            for name, given in (("feature", {"latent": 0}), ("budget", {}))
        ]
    assert [(each.status_code, each.json()["error"]["kind"]) for each in busy] == [(503, "busy")] * 2
    after = client.post("/secret/api/tools/feature", json={"latent": 0}).json()
    assert (after["ok"], after["id"], after["left"]["calls"]) == (True, "r2", 199)
    assert [line["id"] for line in read_transcript(path).calls] == ["r1", "r2"]
    assert replay(path, Workspace.open(folders, model=planted.tuned())).equal


def test_a_turn_that_is_not_to_be_had_is_no_call():
    """Whatever a workspace's `turn` raises comes out, with nothing numbered or charged."""
    own = Session(toys_.workspace())
    turn, toys_.workspace().turn = toys_.workspace().turn, Turns(waiting=0)
    try:
        with toys_.workspace().turn, pytest.raises(UserError, match="busy"):
            own.call("list_models")
    finally:
        toys_.workspace().turn = turn
    assert own.spending.calls == 0 and not own.results and own.call("list_models").id == "r1"


def test_a_dictionary_is_not_loaded_twice_and_one_of_another_model_is_left_out(folders, tmp_path):
    from unweave.viz.things import open_things

    strange = planted.dictionary()
    strange.metadata = {**strange.metadata, "model": {"name": "other", "fingerprint": "0" * 16}}
    strange.save(tmp_path / "strange")
    things = open_things([*folders, tmp_path / "strange"])
    live = Live(things, planted.base())
    own = Tools(live, audited=Audited()).session().workspace
    assert list(own.dictionaries) == ["planted"] and list(own.stores) == ["store"]
    (store,) = things.stores.values()
    assert live.dictionary_for(store) is own.dictionaries["planted"]


def test_two_first_calls_make_one_session(folders):
    from unweave.viz.things import open_things

    tools = Tools(Live(open_things(folders), planted.base()))
    replies = []
    threads = [threading.Thread(target=lambda: replies.append(tools.call("list_models", {})["id"])) for _ in range(3)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert sorted(replies) == ["r1", "r2", "r3"]
