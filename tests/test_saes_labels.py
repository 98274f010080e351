"""labels.sqlite: what is said of latents, its history, who may write at once, and files that others made or damaged."""

import json
import os
import sqlite3
import stat
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
from unweave.saes import UserError
from unweave.saes.latents.said.labels import Labels
from unweave.saes.latents.said.mark import EMPTY, Mark

SCORE = {"method": "detection", "value": 0.8, "low": 0.7, "high": 0.9, "n": 40}
PLAIN_HOSTILE = [
    "<img src=x onerror=alert(1)>",
    "'; DROP TABLE labels; --",
    "\x00 NUL",
    "\u202egnp.exe",
    "{{7*7}}",
    "東京 🗼",
]


@pytest.fixture
def labels(tmp_path):
    return Labels(tmp_path)


def version_1(folder: Path, rows: dict[int, str]) -> None:
    database = sqlite3.connect(folder / "labels.sqlite")
    with database:
        database.execute("CREATE TABLE labels (latent INTEGER PRIMARY KEY, label TEXT NOT NULL)")
        database.executemany("INSERT INTO labels VALUES (?, ?)", rows.items())
    database.close()


def test_only_what_is_given_changes(labels):
    labels.set(3, label=" Paris ", tags=["place", "place", " "], author="Ada")
    assert labels.get(3) == Mark("Paris", "", ("place",), False, None)
    labels.set(3, note="also the myth", is_starred=True)
    labels.set(3, score=SCORE)
    assert labels.get(3) == Mark("Paris", "also the myth", ("place",), True, SCORE)
    labels.set(3, label=None, note="", tags=[], is_starred=False, score=None)
    assert labels.get(3) == EMPTY
    assert labels.get(4) == EMPTY


def test_reading_makes_no_file(labels):
    assert labels.get(0) == EMPTY
    assert (labels.all(), labels.history(0), labels.undo(0), labels.rows()) == ({}, [], None, [])
    assert not labels.path.exists()
    with pytest.raises(UserError):
        labels.set(0, label="x" * 501)
    assert not labels.path.exists(), "nor does a mistake"


def test_a_new_label_drops_the_score_of_the_old_one(labels):
    labels.set(1, label="cats", score=SCORE)
    labels.set(1, note="n", label="cats")
    assert labels.get(1).score == SCORE
    labels.set(1, label="dogs")
    assert labels.get(1).score is None
    labels.undo(1)
    assert labels.get(1) == Mark("cats", "n", (), False, SCORE)
    labels.set(1, label="birds", score={**SCORE, "value": 0.75})
    assert labels.get(1).score["value"] == 0.75


def test_history_tells_who_when_and_what(labels):
    labels.set(2, label="a", author="Ada")
    labels.set(2, label="a", author="Bob")
    labels.set(9, label="other")
    labels.set(2, label="b", is_starred=True, author="Bob")
    last, first = labels.history(2)
    assert (first.before, first.after, first.author) == ({"label": None}, {"label": "a"}, "Ada")
    assert (last.before, last.after) == ({"label": "a", "is_starred": False}, {"label": "b", "is_starred": True})
    assert first.time <= last.time
    assert last.time.endswith("+00:00")
    assert first.number < last.number
    assert first.undoes is last.undoes is None


def test_history_cannot_be_rewritten(labels):
    labels.set(2, label="a")
    for statement in ("UPDATE history SET author = 'x'", "DELETE FROM history"):
        with sqlite3.connect(labels.path) as database, pytest.raises(sqlite3.IntegrityError, match="append-only"):
            database.execute(statement)
        database.close()


def test_undo_goes_back_step_by_step_and_keeps_the_history(labels):
    for label in "abc":
        labels.set(5, label=label)
    assert labels.undo(5, author="Bob").after == {"label": "b"}
    assert labels.undo(5).after == {"label": "a"}
    labels.set(5, label="d")
    assert labels.undo(5).after == {"label": "a"}
    assert labels.undo(5).after == {"label": None}
    assert labels.undo(5) is None
    assert labels.get(5) == EMPTY
    assert len(labels.history(5)) == 8
    assert labels.history(5)[4].undoes == labels.history(5)[5].number


@pytest.mark.parametrize("text", PLAIN_HOSTILE)
def test_text_comes_back_as_it_was(labels, text):
    labels.set(0, label=text, note=text + "\r\n", tags=[text], author=text)
    assert labels.get(0) == Mark(text, text + "\r\n", (text,), False, None)
    assert labels.history(0)[0].author == text


@pytest.mark.parametrize(
    "given, match",
    [
        ({"label": "x" * 501}, "500"),
        ({"label": 7}, "text"),
        ({"label": "\ud800"}, "UTF-8"),
        ({"note": "x" * 20_001}, "20,000"),
        ({"tags": ["x" * 61]}, "60"),
        ({"tags": [f"t{i}" for i in range(33)]}, "32 tags"),
        ({"tags": "place"}, "list of tags"),
        ({"tags": [3]}, "text"),
        ({"is_starred": "false"}, "true or false"),
        ({"score": {"value": 1}}, "method"),
        ({"score": {**SCORE, "value": float("nan")}}, "finite"),
        ({"score": {**SCORE, "low": 0.85}}, "low ≤ value"),
        ({"score": {**SCORE, "n": -1}}, "count n"),
        ({"score": {**SCORE, "extra": "x" * 5000}}, "4,000"),
        ({"score": {**SCORE, "extra": float("inf")}}, "plain JSON"),
        ({"author": "x" * 201, "label": "a"}, "200"),
    ],
)
def test_what_is_too_long_or_of_another_kind_is_a_user_error(labels, given, match):
    labels.set(0, label="before")
    author = given.pop("author", "")
    with pytest.raises(UserError, match=match):
        labels.add_rows(
            [{"latent": 1, "label": "fine"}, {"latent": 0, **given}], author
        )  # untyped, as a page's JSON is
    assert labels.get(1) == EMPTY, "all rows or none"
    assert labels.get(0) == Mark("before")
    assert len(labels.history(0)) == 1


@pytest.mark.parametrize("latent", [-1, 10, 2**70, 1.5, "1", None, True])
def test_a_latent_that_is_none_is_a_user_error(tmp_path, latent):
    labels = Labels(tmp_path, 10)
    calls = [lambda: labels.add_rows([{"latent": latent, "label": "x"}])]
    if isinstance(latent, int):
        calls += [lambda: labels.get(latent), lambda: labels.history(latent), lambda: labels.undo(latent)]
        calls += [lambda: labels.set(latent, label="x"), lambda: labels.tag(latent, ["x"])]
    for call in calls:
        with pytest.raises(UserError, match=r"latent in \[0, 10\)"):
            call()


def test_a_file_of_version_1_is_read_as_it_is_and_grows_with_the_first_change(tmp_path):
    version_1(tmp_path, {3: "old", 5: "five"})
    before = (tmp_path / "labels.sqlite").read_bytes()
    labels = Labels(tmp_path)
    assert labels.get(3) == Mark("old")
    assert labels.all() == {3: Mark("old"), 5: Mark("five")}
    assert labels.history(3) == []
    assert (tmp_path / "labels.sqlite").read_bytes() == before
    assert labels.undo(3) is None
    labels.set(3, label="new", tags=["t"])
    assert labels.all() == {3: Mark("new", "", ("t",)), 5: Mark("five")}
    labels.undo(3)
    assert Labels(tmp_path).get(3) == Mark("old"), "the label of version 1 is what history begins with"
    with sqlite3.connect(labels.path) as database:
        assert database.execute("SELECT label FROM labels WHERE latent = 5").fetchone() == ("five",)
    database.close()


def test_all_follows_every_change_without_reading_anew(labels, monkeypatch):
    other = Labels(labels.path.parent)
    labels.set(1, label="one")
    labels.set(2, label="two")
    kept = labels.all()[2]
    for _ in range(2):
        other.set(1, label="uno", is_starred=True)
        other.set(7, note="n")
        assert labels.all() == {1: Mark("uno", is_starred=True), 2: Mark("two"), 7: Mark(note="n")}
        other.undo(7)
        assert labels.all() == other.all() == {1: Mark("uno", is_starred=True), 2: Mark("two")}
        assert labels.all()[2] is kept
    with sqlite3.connect(labels.path) as database:  # someone's own SQL
        database.execute("UPDATE labels SET label = 'dos' WHERE latent = 2")
    database.close()
    assert labels.all()[2] == Mark("dos")
    labels.path.unlink()
    assert labels.all() == {}
    other.set(4, label="four")
    assert labels.all() == {4: Mark("four")}


def test_threads_and_processes_lose_no_update(tmp_path):
    code = f"""
import sys
from unweave.saes.latents.said.labels import Labels
labels = Labels({str(tmp_path)!r})
for i in range(12):
    labels.tag(0, [f"p{{sys.argv[1]}}-{{i}}"])
    labels.tag(0, remove=[f"p{{sys.argv[1]}}-{{i}}"])
    labels.set(1 + i, **{{"note" if sys.argv[1] == "0" else "label": f"by {{sys.argv[1]}}"}})
"""
    processes = [subprocess.Popen([sys.executable, "-c", code, str(i)]) for i in range(2)]
    labels, failed = Labels(tmp_path), []

    def work(number):
        try:
            for i in range(7):
                labels.tag(0, [f"t{number}-{i}"])
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [process.wait(60) for process in processes] == [0, 0]
    assert failed == []
    assert set(labels.get(0).tags) == {f"t{n}-{i}" for n in range(4) for i in range(7)}
    assert len(labels.history(0)) == 28 + 2 * 24
    assert all(labels.get(1 + i) == Mark("by 1", "by 0") for i in range(12))


def test_a_locked_file_is_a_user_error_after_a_while(tmp_path):
    labels = Labels(tmp_path, wait_s=0.05)
    labels.set(0, label="a")
    other = sqlite3.connect(labels.path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    for call in (lambda: labels.set(0, label="b"), lambda: labels.get(0), labels.all, lambda: labels.undo(0)):
        with pytest.raises(UserError, match="locked"):
            call()
    other.execute("ROLLBACK")
    other.close()
    assert labels.get(0) == Mark("a")


def test_a_writer_waits_for_its_turn(labels):
    labels.set(0, label="a")
    other = sqlite3.connect(labels.path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN EXCLUSIVE")
    threading.Timer(0.3, other.close).start()
    start = time.monotonic()
    labels.set(0, label="b")
    assert time.monotonic() - start > 0.2
    assert labels.get(0) == Mark("b")


def test_a_folder_that_is_read_only_can_be_read():
    with tempfile.TemporaryDirectory() as name:
        labels = Labels(name)
        labels.set(0, label="a")
        os.chmod(labels.path, 0o444)
        os.chmod(name, 0o555)
        is_root = os.geteuid() == 0
        try:
            if is_root:
                os.seteuid(65534)  # root may write anywhere
            assert labels.get(0) == Mark("a")
            assert labels.all() == {0: Mark("a")}
            assert len(labels.history(0)) == 1
            for call in (lambda: labels.set(0, label="b"), lambda: labels.undo(0), lambda: labels.tag(0, ["t"])):
                with pytest.raises(UserError, match="cannot be written"):
                    call()
            assert labels.get(0) == Mark("a")
        finally:
            if is_root:
                os.seteuid(0)
            os.chmod(name, stat.S_IRWXU)
    with pytest.raises(UserError, match="cannot be written"):
        labels.set(0, label="b")  # the folder is gone


def damage(path: Path, how: str) -> None:
    if how in ("bytes", "cut"):
        path.write_bytes(b"not a database, but long enough" * 80 if how == "bytes" else path.read_bytes()[:5000])
        return
    with sqlite3.connect(path) as database:
        match how:
            case "columns":
                database.execute("DROP TABLE labels")
                database.execute("CREATE TABLE labels (other INTEGER)")
            case "view":
                database.execute("DROP TABLE labels")
                database.execute("CREATE VIEW labels AS SELECT 1 AS latent, 'x' AS label")
            case "newer":
                database.execute("PRAGMA user_version = 3")
            case "blob":
                database.execute("UPDATE labels SET label = x'ff00'")
            case "text":
                database.execute("UPDATE labels SET label = CAST(x'ff80' AS TEXT)")
            case "tags":
                database.execute("UPDATE labels SET tags = '{'")
            case "score":
                database.execute("UPDATE labels SET score = '[1]'")
    database.close()


@pytest.mark.parametrize("how", ["bytes", "cut", "columns", "view", "newer", "blob", "text", "tags", "score"])
def test_a_damaged_file_is_a_user_error(labels, how):
    for latent in range(40):
        labels.set(latent, label="a" * 300)
    damage(labels.path, how)
    labels = Labels(labels.path.parent)
    for call in (lambda: labels.set(0, label="b"), lambda: labels.get(0), labels.all):
        with pytest.raises(UserError, match=r"labels\.sqlite"):
            call()


def test_rows_and_csv_carry_everything_to_another_store(labels, tmp_path):
    for latent, text in enumerate(PLAIN_HOSTILE):
        labels.set(
            latent * 3,
            label=text,
            note=f'"{text}",\r\nnext',
            tags=[text, "b"],
            is_starred=bool(latent % 2),
            score=SCORE,
        )
    labels.set(50, note="only a note")
    rows = json.loads(json.dumps(labels.rows()))
    assert [row["latent"] for row in rows] == [0, 3, 6, 9, 12, 15, 50]
    by_rows, by_csv = (Labels(tmp_path / name) for name in ("rows", "csv"))
    for other in (by_rows, by_csv):
        other.path.parent.mkdir()
    assert by_rows.add_rows(rows, author="Ada") == 7
    assert by_rows.add_rows(rows) == 0
    labels.to_csv(tmp_path / "labels.csv")
    assert by_csv.read_csv(tmp_path / "labels.csv") == 7
    assert labels.all() == by_rows.all() == by_csv.all()
    assert by_rows.history(50)[0].author == "Ada"


def test_a_csv_file_of_two_columns_is_enough(labels, tmp_path):
    labels.set(1, label="one", note="stays")
    (tmp_path / "in.csv").write_text("\ufefflabel,latent\nuno,1\ndos,2\n", encoding="utf-8")
    assert labels.read_csv(tmp_path / "in.csv") == 2
    assert labels.all() == {1: Mark("uno", "stays"), 2: Mark("dos")}


@pytest.mark.parametrize(
    "text", ["label\nx\n", "latent,label\nx,y\n", "latent,label\n1\n", "latent,label\n1,a,b\n", "latent,tags\n1,{\n",
             "latent,label\n2,fine\n-1,a\n", "latent,tags\n1,3\n", "latent,score\n1,[]\n", 'latent,label\n2,fine\n1,"' + "x" * 501 + '"\n'],
)  # fmt: skip
def test_a_csv_file_of_something_else_changes_nothing(labels, tmp_path, text):
    labels.set(1, label="one")
    (tmp_path / "in.csv").write_text(text)
    with pytest.raises(UserError, match="expected"):
        labels.read_csv(tmp_path / "in.csv")
    assert labels.all() == {1: Mark("one")}
    with pytest.raises(UserError, match="CSV"):
        labels.read_csv(tmp_path / "missing.csv")
