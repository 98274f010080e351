"""Where a text came from: noted when it is cached, and shown by the store that is collected on it."""

import json
from dataclasses import dataclass

import pytest
import toys
from saes_toys import RESID, dictionary, model
from unweave.saes import Document, Shards, bundled, cache, collect, read_documents
from unweave.saes.cache import MOST_NAMES
from unweave.saes.io import read_json, write_json
from unweave.saes.shards.writer import ShardWriter


def about(folder, given, tokens=400, **options):
    """The manifest's text of what is cached."""
    return cache(model(), given, [RESID], folder, tokens, context=16, progress=False, **options).manifest["text"]


@pytest.fixture
def files(tmp_path):
    """A folder with two texts, and JSON lines of which one has an id of its own."""
    (tmp_path / "texts" / "inner").mkdir(parents=True)
    (tmp_path / "texts" / "a.md").write_text("w3 w4 w5")
    (tmp_path / "texts" / "inner" / "b.txt").write_text("w6 w7")
    lines = [{"text": "w8"}, {"text": "w9 w10"}, {"text": "w11", "id": "own"}]
    (tmp_path / "lines.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    return [tmp_path / "texts", tmp_path / "lines.jsonl"]


def test_files_are_named_without_the_folders_above_them(tmp_path, files):
    said = about(tmp_path / "a", read_documents(files))
    names = ["texts/a.md", "texts/inner/b.txt", "lines.jsonl", "own"]
    assert said == {"names": names, "more_names": False, "documents": 5}
    assert str(tmp_path) not in (tmp_path / "a" / "manifest.json").read_text()


def test_only_text_that_was_cached_is_named(tmp_path, files):
    assert about(tmp_path / "a", read_documents(files), 5) == {
        "names": ["texts/a.md", "texts/inner/b.txt"], "more_names": False, "documents": 2,
    }  # fmt: skip


@pytest.mark.parametrize("given", [lambda: bundled(), lambda: read_documents("bundled")], ids=["bundled", "named"])
def test_the_bundled_corpus_is_known_by_its_documents(tmp_path, given):
    assert about(tmp_path / "a", given())["names"] == ["bundled"]
    shortened = [document._replace(text=document.text[:50]) for document in bundled()[:2]]
    assert about(tmp_path / "b", shortened)["names"] == [document.id for document in bundled()[:2]]


@pytest.mark.parametrize("given", [["w3 w4", "w5"], [toys.prompt(4), toys.prompt(5)]], ids=["strings", "blocks"])
def test_text_in_memory_has_the_name_that_it_is_given(tmp_path, given):
    assert about(tmp_path / "a", given) == {"names": [], "more_names": False, "documents": 2}
    assert about(tmp_path / "b", given, source="a data set")["names"] == ["a data set"]
    assert about(tmp_path / "c", given, source=("x", "y"))["names"] == ["x", "y"]


@dataclass
class Own:
    """Somebody's own kind of document, which has no hash."""

    id: str
    text: str


def test_names_of_any_number_and_any_characters_fit_the_manifest(tmp_path):
    many = [Own(f"{number}", "w3 w4") for number in range(100)]
    said = about(tmp_path / "a", many)
    assert said == {"names": [str(number) for number in range(MOST_NAMES)], "more_names": True, "documents": 100}
    said = about(tmp_path / "b", [Document("\ud800" + "x" * 999, "text", "w3")])
    assert said["names"] == ["?" + "x" * 199]


class Stop(Exception):
    pass


def test_a_resumed_run_names_what_an_uninterrupted_one_does(tmp_path, files, monkeypatch):
    flush = ShardWriter._flush

    def stop(self):
        if self.manifest["shards"]:
            raise Stop
        flush(self)

    options = {"batch": 1, "shard_mib": 0}
    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(ShardWriter, "_flush", stop)
        about(tmp_path / "cut", read_documents(files), **options)
    assert read_json(tmp_path / "cut" / "manifest.json", "it")["text"]["names"] == ["texts/a.md"]
    about(tmp_path / "whole", read_documents(files), **options)
    about(tmp_path / "cut", read_documents(files), resume=True, **options)
    assert Shards.open(tmp_path / "cut").manifest == Shards.open(tmp_path / "whole").manifest


def test_a_store_says_what_its_shards_say_and_older_shards_still_open(tmp_path, files):
    said = about(tmp_path / "a", read_documents(files))
    store = collect(dictionary(), Shards.open(tmp_path / "a"), tmp_path / "store", model(), progress=False)
    assert store.manifest["text"] == said
    manifest = read_json(tmp_path / "a" / "manifest.json", "it")
    del manifest["text"]
    write_json(tmp_path / "a" / "manifest.json", manifest)
    old = collect(dictionary(), Shards.open(tmp_path / "a"), tmp_path / "old", model(), progress=False)
    assert old.manifest["text"] is None
