"""The examples run from top to bottom, each in an empty folder, and find what they say they find."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parent.parent / "examples"
NUMBER = r"(-?\d+(?:\.\d+)?)"


def ran(name: str, folder: Path) -> str:
    """What the example prints, run in `folder` by a fresh interpreter without a network."""
    environment = {**os.environ, "PYTHONSAFEPATH": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, FOLDER / f"{name}.py"],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=1200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def numbers(pattern: str, text: str) -> list[float]:
    """The numbers that stand in `text` where `pattern` has `#`."""
    found = re.search(re.escape(pattern).replace(r"\#", NUMBER), text)
    assert found, f"{pattern!r} is not in:\n{text}"
    return [float(number) for number in found.groups()]


def is_page(path: Path) -> bool:
    return path.read_text("utf-8").lstrip().lower().startswith("<!doctype html>")


def test_no_example_is_forgotten():
    assert {path.stem for path in FOLDER.glob("*.py")} == {
        "features_of_code",
        "one_concept_many_languages",
        "what_does_it_hide",
        "what_fine_tuning_changed",
        "why_paris",
    }


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.stem)
def test_example_is_a_notebook_that_begins_with_a_question(path):
    cells = re.split(r"^# %%", path.read_text("utf-8"), flags=re.MULTILINE)
    assert cells[0] == "" and len(cells) > 8
    assert re.match(r" \[markdown\]\n# # .+\?\n", cells[1])


@pytest.mark.model
def test_why_paris(tmp_path, smollm2):
    said = ran("why_paris", tmp_path)
    before, after = numbers("P(' Paris') # → #;", said)
    assert after < 0.1 * before
    assert is_page(tmp_path / "paris.html")


@pytest.mark.model
def test_features_of_code(tmp_path, smollm2):
    """Far more latents are about code than with shuffled kinds, and the one that is shown knows more than its tokens."""
    said = ran("features_of_code", tmp_path)
    found, _ = numbers("# of # latents that fire often have a code share", said)
    average, _ = numbers("with shuffled kinds: # on average, # at most", said)
    assert found > 10 and found > 5 * average
    first = said.split("by token alone  tokens\n")[1].split()
    assert float(first[2]) >= 0.95 > float(first[3]) + 0.1
    assert "1 labels, tags or notes with “in python”" in said
    assert is_page(tmp_path / "code.html")


@pytest.mark.model
def test_what_fine_tuning_changed(tmp_path, smollm2):
    """The quirk is there, and the latents that were chosen by other questions undo more of it than any eight others."""
    said = ran("what_fine_tuning_changed", tmp_path)
    base, english, french = numbers("French over English: base #, english #, french #", said.replace("+", ""))
    assert french > base + 5 and english < base + 5
    (eight,) = numbers("the eight undo #% of what", said)
    _, most, _ = numbers("eight others: #% to #% in ten draws, #% on average", said)
    (everything,) = numbers("that are active there: #%", said)
    assert everything > eight > most
    assert is_page(tmp_path / "compare.html")


def test_what_does_it_hide(tmp_path):
    """The planted word is named and its claim replays; nothing is said of the control."""
    said = ran("what_does_it_hide", tmp_path)
    assert re.search(r"^named: \('anchor', .*'harbor'", said, re.MULTILINE) and "replayed: True" in said
    assert "control: Nothing was found." in said
    assert is_page(tmp_path / "audit.html")


@pytest.mark.model
def test_one_concept_many_languages(tmp_path, smollm2):
    """Translations share more latents than mismatched sentences do, most of all in the middle of the model."""
    said = ran("one_concept_many_languages", tmp_path)
    gains = {}
    for layer in ("2", "14", "26"):
        line = f"layer {layer}: gain #, # of the mismatched; found # (chance 0.042); sure in # of 10 pairs"
        gains[layer], _, found, sure = numbers(line, said)
        assert found > 0.042
    assert max(gains, key=gains.get) == "14" and sure >= 5
