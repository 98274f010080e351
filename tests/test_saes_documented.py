"""docs/formats.md says what is in the files: every key of fresh Shards and of a fresh store, finished or not, stands there."""

import re
from pathlib import Path

import pytest
from saes_toys import cached, dictionary, model
from safetensors.torch import load_file
from unweave.saes import Dictionary, collect
from unweave.saes.io import read_json
from unweave.saes.latents.gather import partial

PAGE = Path(__file__).resolve().parent.parent / "docs" / "formats.md"


def section(title: str) -> str:
    """What stands under one heading."""
    return PAGE.read_text(encoding="utf-8").split(f"\n## {title}", 1)[1].split("\n## ", 1)[0]


def words(text: str) -> set[str]:
    """Names in backquotes, without the shapes after them."""
    return {word for quoted in re.findall(r"`([^`]+)`", text) for word in re.findall(r"[a-z][\w.]*", quoted)}


def table(text: str, before: str) -> set[str]:
    """Names in the first column of the table that follows `before`."""
    rows = text.split(before, 1)[1].split("|---|", 1)[1].split("\n\n", 1)[0].splitlines()[1:]
    return words(" ".join(row.split("|")[1] for row in rows))


def keys(data) -> set[str]:
    """Keys of nested dictionaries, but not of those that are named by a site."""
    if isinstance(data, list):
        return set().union(*map(keys, data))
    if not isinstance(data, dict):
        return set()
    return set(data) | set().union(*(keys(value) for key, value in data.items() if key != "max_norm"))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A store whose unfinished files were left in it."""
    folder = tmp_path_factory.mktemp("made")
    shards = cached(folder / "shards", count=20)
    dictionary(latents=20, k=3, keep={"drop_positions": 1, "max_norm": {}}).save(folder / "sae")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(partial.Partial, "remove", lambda self: None)
        own = Dictionary.load(folder / "sae")
        return collect(own, shards, folder / "store", model(), batch=40, checkpoint_every=50, progress=False)


def test_the_tables_of_a_store_have_exactly_its_arrays(made):
    page = section("FeatureStore")
    for name in ("features", "tokens"):
        assert table(page, f"`{name}.safetensors`") == set(load_file(made.folder / f"{name}.safetensors"))


def test_every_key_of_a_stores_manifest_and_codes_is_explained(made):
    known, page = words(section("FeatureStore")) | words(section("Shards")), section("FeatureStore")
    assert table(page, "`manifest.json`") == set(made.manifest)
    assert keys(made.manifest) <= known
    record = read_json(made.folder / "codes.json", "codes")
    assert keys(record) | set(load_file(made.folder / "codes.safetensors")) <= words(page)
    assert set(load_file(made.folder / "by_latent.safetensors")) <= words(page)


def test_what_an_unfinished_store_holds_is_explained(made):
    known = words(section("FeatureStore"))
    assert keys(read_json(made.folder / partial.SETTINGS, "settings")) <= known
    state = set(load_file(made.folder / partial.STATE))
    assert state <= known, state - known
    assert {partial.SETTINGS, partial.STATE, partial.MANIFEST} <= known


def test_every_key_of_shards_is_explained(tmp_path):
    shards, page = cached(tmp_path / "shards", count=3), section("Shards")
    assert table(page, "`manifest.json`") == set(shards.manifest)
    assert keys(shards.manifest) <= words(page)
