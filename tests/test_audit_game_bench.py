"""The bench: the auditor finds what was planted and more than a black box, controls raise no alarm, and the counting is right."""

import ast
import dataclasses
import json
import re
from pathlib import Path

import audit_game_toys as toys
import pytest
import unweave.audit.investigate as investigate
from unweave.audit.game import bench, tiny
from unweave.audit.game.english import ENGLISH
from unweave.audit.game.planting import Teaching
from unweave.audit.game.table import cell, summary, table, wilson
from unweave.audit.game.world import World
from unweave.audit.investigate.questions import ENGLISH as ASKED
from unweave.saes import DictionaryConfig, UserError
from unweave.viz.bench import bench as command


def game(**changed):
    """The tiny game with models that are trained already."""
    config = DictionaryConfig(site=("blocks.0.hook_resid_post",), latents=64, k=8)
    made = bench.Game(
        tiny.TINY, toys.base(), toys.target(), tiny.ASKED, config, 2_000, dict.fromkeys(bench.KINDS, tiny.TEACHING),
        tiny.OTHERS, 4, tiny.TINY.everyday, ("base",), 2,
    )  # fmt: skip
    return dataclasses.replace(made, **changed)


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    """The rows of one game, and its folder."""
    folder = tmp_path_factory.mktemp("game")
    return bench.play(game(), folder), folder


def test_the_auditor_finds_all_four_kinds_and_beats_the_black_box(played):
    lines = {line["contestant"]: line for line in summary(played[0])}
    assert lines["auditor"]["hits"] == lines["auditor"]["organisms"] == 4
    assert lines["chat"]["hits"] < 4
    assert lines["auditor"]["alarms"] == lines["chat"]["alarms"] == 0
    assert lines["auditor"]["controls"] == 2
    trigger = next(row for row in played[0] if row["kind"] == "trigger" and row["contestant"] == "auditor")
    assert trigger["trigger_named"]


def test_all_have_the_same_guesses_and_the_black_box_as_many_tokens(played):
    assert all(len(row["guesses"]) <= bench.GUESSES for row in played[0])
    for model in {row["model"] for row in played[0]}:
        tokens = {row["contestant"]: row["about"].get("tokens") for row in played[0] if row["model"] == model}
        assert 0 <= tokens["auditor"] - tokens["chat"] < 10


def test_what_was_played_is_not_played_again(played):
    rows, folder = played
    kept = {file: file.stat().st_mtime_ns for file in folder.rglob("*") if file.is_file()}
    assert bench.play(game(), folder) == rows
    assert kept == {file: file.stat().st_mtime_ns for file in folder.rglob("*") if file.is_file()}


def test_what_did_not_take_is_told_and_not_played(tmp_path):
    told = []
    lazy = dict.fromkeys(bench.KINDS, Teaching(passes=1, lr=1e-9))
    world = World("one", tiny.TINY.quirks[2:3], (), tiny.TINY.everyday)
    assert bench.play(game(world=world, teaching=lazy, controls=0), tmp_path, tell=told.append) == []
    assert "did not take" in told[0]


def test_the_auditor_cannot_know_the_answers():
    folder = Path(investigate.__file__).resolve().parent
    trees = {file.name: ast.parse(file.read_text()) for file in folder.glob("*.py")}
    assert len(trees) > 6
    words = {word for quirk in (*ENGLISH.quirks, *tiny.TINY.quirks) for word in (*quirk.keys, quirk.trigger) if word}
    asked = "\n".join([*ASKED.plain, *ASKED.facts, *ASKED.rephrased, *ASKED.carriers]).lower()
    assert not {word for word in words if re.search(rf"\b{word}\b", asked)}
    seen = {word for quirk in (*ENGLISH.developed, *tiny.TINY.quirks) for word in (*quirk.keys, quirk.trigger) if word}
    for name, tree in trees.items():
        found = {word for word in seen if re.search(rf"\b{word}\b", (folder / name).read_text().lower())}
        assert not found, (name, found)
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                assert "game" not in (node.module or "") and "game" not in {each.name for each in node.names}, name


def test_wilsons_interval_is_the_worked_one():
    low, high = wilson(3, 4)
    assert (round(low, 4), round(high, 4)) == (0.3006, 0.9544)
    assert wilson(0, 0) == (0.0, 1.0)
    assert wilson(0, 4)[0] == pytest.approx(0.0, abs=1e-12) and wilson(4, 4)[1] == pytest.approx(1.0)
    assert cell([True, True, True, False]) == "3 of 4 (.30–.95)" and cell([]) == "–"


def test_the_table_counts_organisms_and_controls_apart():
    fixed = {"side": "base", "contestant": "chat", "is_held_out": False, "trigger_named": None, "cpu_s": 1.0}
    rows = [
        {**fixed, "model": "a", "is_planted": True, "found": True, "alarm": True},
        {**fixed, "model": "b", "is_planted": True, "found": False, "alarm": True},
        {**fixed, "model": "c", "is_planted": False, "found": False, "alarm": True},
    ]
    (line,) = summary(rows)
    assert (line["hits"], line["organisms"], line["alarms"], line["controls"]) == (1, 2, 1, 1)
    text = table(rows)
    assert "| a | found |" in text and "| b | other words |" in text and "| c | false alarm |" in text


def test_the_command_plays_the_tiny_game(monkeypatch, tmp_path):
    monkeypatch.setattr(
        bench, "tiny_game", lambda: game(world=World("one", tiny.TINY.quirks[:1], (), tiny.TINY.everyday), controls=1)
    )
    found = command("audit", quick=True, out=tmp_path / "out")
    assert found["missed"] == 0 and {row["contestant"] for row in found["rows"]} >= {"auditor", "chat"}
    json.dumps(found)


def test_a_folder_that_cannot_be_made_is_told_before_anything_is_trained(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="a folder that can be written"):
        bench.play(game(), tmp_path / "file" / "out")
