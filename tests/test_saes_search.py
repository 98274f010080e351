"""Search over a store: every kind against its definition in plain loops, hostile queries, and the time it takes."""

import random
import time
from types import SimpleNamespace

import fakes
import numpy as np
import pytest
import torch
from unweave.saes import Codes, UserError
from unweave.saes.io import write_json, write_tensors
from unweave.saes.latents.find.running_text import occurrences
from unweave.saes.latents.find.search import fuse, rank_firing, search
from unweave.saes.latents.find.search_index import index_of
from unweave.saes.latents.said.labels import Labels
from unweave.saes.statistics import wilson

BEFORE, AFTER = 4, 3
VOCAB = [" The", " the", "the", "a", "ab", "ba", "b", " Paris", "paris", "PARIS is", "ß", "Straße", "İ", "Σς", "東", "\ud800",
         "\x00", "", ".*", "(", "\\", "</script>", "\n", " ", "aaaa", "<|endoftext|>"]  # fmt: skip


class Store(SimpleNamespace):
    """What search reads of a FeatureStore."""

    __hash__ = object.__hash__

    def __len__(self):
        return self.number


def made(folder, latents=60, rows=700, *, seed=0, has_tokens=True, **changed):
    """A store of random arrays: blocks of 1 to 20 rows, some latents with few examples, latent 0 with none."""
    generator = torch.Generator().manual_seed(seed)

    def randint(high, *shape):
        return torch.randint(0, high, shape, generator=generator)

    positions = []
    while len(positions) < rows:
        positions += range(int(randint(20, 1)) + 1)
    example_rows = randint(rows, latents, 6).int()
    example_rows[:, 3:] = torch.where(randint(3, latents, 1) == 0, -1, example_rows[:, 3:])
    example_rows[0] = -1
    values = torch.rand(latents, 6, generator=generator).sort(1, descending=True).values
    size = len(VOCAB)
    arrays = {"count": randint(200, latents), "example_rows": example_rows, "example_values": values}
    for name in ("top", "bottom"):
        ids = torch.stack([torch.randperm(size, generator=generator)[:3] for _ in range(latents)])
        sign = 1 if name == "top" else -1
        arrays |= {
            f"{name}_logit_tokens": ids.int(),
            f"{name}_logit_values": sign * torch.rand(latents, 3, generator=generator),
        }
    if has_tokens:
        ids = torch.stack([torch.randperm(size, generator=generator)[:4] for _ in range(latents)]).int()
        ids[:, 2:] = torch.where(randint(2, latents, 1) == 0, -1, ids[:, 2:])
        arrays |= {"token_ids": ids, "token_counts": torch.where(ids < 0, 0, randint(50, latents, 4) + 1).int()}
    text = {"tokens": randint(size, rows).int(), "positions": torch.tensor(positions[:rows]).int()}
    for name, part in changed.items():
        (text if name in text else arrays)[name] = part
    write_tensors(folder / "features.safetensors", arrays)
    write_tensors(folder / "tokens.safetensors", text)
    return Store(
        folder=folder,
        manifest={"before": BEFORE, "after": AFTER},
        vocabulary=VOCAB,
        number=latents,
        labels=Labels(folder),
        arrays={**arrays, **text},
    )


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return made(tmp_path_factory.mktemp("store"))


def window(arrays, row):
    """Token strings around a row, by the definition."""
    positions, tokens = arrays["positions"].tolist(), arrays["tokens"].tolist()
    stop = row + 1
    while stop < len(tokens) and stop <= row + AFTER and positions[stop] > 0:
        stop += 1
    return [VOCAB[token] for token in tokens[row - min(BEFORE, positions[row]) : stop]]


@pytest.mark.parametrize(
    "query", ["the", "THE ", "a", "aa", "aaa", "aba", " paris", "is\n", "SS", "straSSe", "ß", "σσ", "i̇", "東", "\ud800", "\x00",
              ".*", "(", "\\", "</script>", " ", "\n ", "abba the", "aaaaaaaaaaaa", "b.*(\\", "aaaaaaab.*"],
)  # fmt: skip
def test_text_search_finds_the_examples_whose_window_reads_so(store, query):
    expected = []
    for latent, rows in enumerate(store.arrays["example_rows"].tolist()):
        windows = ["".join(token.casefold() for token in window(store.arrays, row)) if row >= 0 else "" for row in rows]
        hit = [query.casefold() in text for text in windows]
        if any(hit):
            best = max(
                value
                for value, is_hit in zip(store.arrays["example_values"][latent].tolist(), hit, strict=True)
                if is_hit
            )
            expected.append((-sum(hit), -best, latent))
    found = search(store, query, "text")
    assert found.latents.tolist() == [latent for *_, latent in sorted(expected)]
    assert found.total == len(expected)
    assert found.latents.dtype == torch.int64


def test_text_search_against_many_random_queries(store):
    rng = random.Random(0)
    tokens = store.arrays["tokens"].tolist()
    windows = [
        ["".join(token.casefold() for token in window(store.arrays, row)) if row >= 0 else "" for row in rows]
        for rows in store.arrays["example_rows"].tolist()
    ]
    found = 0
    for _ in range(60):
        start = rng.randrange(len(tokens) - 6)
        text = "".join(VOCAB[token] for token in tokens[start : start + rng.randint(1, 6)])
        low = rng.randrange(max(1, len(text)))
        query = text[low : low + rng.randint(1, 12)]
        if query:
            expected = {j for j, texts in enumerate(windows) if any(query.casefold() in text for text in texts)}
            found += len(expected)
            assert set(search(store, query, "text").latents.tolist()) == expected, repr(query)
    assert found > 200


@pytest.mark.parametrize(
    "needle", [b"a", b"ab", b"abcabca", b"aaaaaaaa", b"aaaaaaaaa", b"abcabcabcabcabcab", b"x" * 40]
)
def test_occurrences_are_all_of_them(needle):
    rng = random.Random(1)
    text = bytes(rng.choice(b"aaabc") for _ in range(3000)) + b"a" * 60 + b"abc" * 30
    array = np.frombuffer(text, np.uint8)
    expected = [i for i in range(len(text)) if text[i : i + len(needle)] == needle]
    for part in (text, text[: len(needle)], text[: len(needle) - 1]):
        array = np.frombuffer(part, np.uint8)
        counted = np.bincount(array, minlength=256)
        assert occurrences(array, needle, counted).tolist() == [i for i in expected if i + len(needle) <= len(part)]


def lower_end(hits, total):
    p, z = hits / total, 1.96
    return (p + z * z / (2 * total) - z * ((p * (1 - p) + z * z / (4 * total)) / total) ** 0.5) / (1 + z * z / total)


@pytest.mark.parametrize(
    "query", ["the", " the", "Paris", " Paris", "paris", "a", "A", "STRASSE", "ß", "", " ", "\ud800", ".*", "東"]
)
@pytest.mark.parametrize("has_tokens", [True, False])
def test_token_search_ranks_by_share_the_exact_token_first(store, tmp_path, query, has_tokens):
    if not has_tokens:
        store = made(tmp_path, has_tokens=False)
    arrays = store.arrays
    bare = query[1:] if query[:1] == " " and len(query) > 1 else query
    expected = []
    for latent in range(len(store)):
        if has_tokens:
            pairs = list(
                zip(arrays["token_ids"][latent].tolist(), arrays["token_counts"][latent].tolist(), strict=True)
            )
            total = max(1, int(arrays["count"][latent]))
        else:
            pairs = [(int(arrays["tokens"][row]), 1) for row in arrays["example_rows"][latent].tolist() if row >= 0]
            total = max(1, len(pairs))
        exact = sum(count for token, count in pairs if token >= 0 and VOCAB[token] in (bare, " " + bare))
        part = sum(count for token, count in pairs if token >= 0 and query.casefold() in VOCAB[token].casefold())
        if query and (exact or part):
            hits = min(exact or part, total)
            expected.append((not exact, -round(lower_end(hits, total), 9), latent))
    found = search(store, query, "token")
    assert found.latents.tolist() == [latent for *_, latent in sorted(expected)]


def test_one_firing_of_one_is_less_than_most_of_a_thousand():
    low, _ = wilson(np.array([1, 900, 0, 3]), np.array([1, 1000, 5, 0]))
    assert low[1] > 0.87 > 0.25 > low[0] > 0.2
    assert low[2] == pytest.approx(0.0, abs=1e-12)
    assert np.isfinite(low).all()


@pytest.mark.parametrize("query", ["the", "Paris", "a", "ß", "zzz", "\x00"])
def test_logit_search_lists_what_promotes_before_what_suppresses(store, query):
    expected = {}
    for rank, (name, is_exact) in enumerate([("top", True), ("top", False), ("bottom", True), ("bottom", False)]):
        for latent in range(len(store)):
            pairs = zip(
                *(store.arrays[f"{name}_logit_{part}"][latent].tolist() for part in ("tokens", "values")), strict=True
            )
            fits = [
                abs(value)
                for token, value in pairs
                if (VOCAB[token] in (query, " " + query) if is_exact else query.casefold() in VOCAB[token].casefold())
            ]
            if fits:
                expected.setdefault(latent, (rank, -max(fits), latent))
    found = search(store, query, "logit")
    assert found.latents.tolist() == [latent for *_, latent in sorted(expected.values())]
    promote = sum(rank < 2 for rank, *_ in expected.values())
    assert f"({promote} promote)" in found.why or not expected


def test_label_search_ranks_by_how_well_it_fits(tmp_path):
    store = made(tmp_path)
    labels = Labels(tmp_path)
    labels.set(9, label="Paris")
    labels.set(8, label="paris and Rome")
    labels.set(7, label="streets of PARIS")
    labels.set(3, label="streets in paris", is_starred=True)
    labels.set(2, label="x", tags=["paris-like"])
    labels.set(1, note="a note about Paris")
    labels.set(0, label="pari", tags=["s"])
    labels.set(5000, label="Paris")
    assert search(store, "paris", "label").latents.tolist() == [9, 8, 3, 7, 2, 1]
    assert search(store, " PARIS ", "label").latents.tolist() == [9, 8, 3, 7, 2, 1]
    assert search(store, "rome paris", "label").latents.tolist() == [8]
    labels.set(7, label="Lyon")
    labels.set(9, label=None)
    labels.set(4, label="Paris")
    assert search(store, "paris", "label").latents.tolist() == [4, 8, 3, 2, 1]
    assert "no label" in search(store, "nowhere", "label").why
    assert search(store, "any", "label").total == 0


def test_any_puts_labels_first_and_fuses_the_rest(tmp_path):
    store = made(tmp_path)
    Labels(tmp_path).set(17, note="the end")
    kinds = {kind: search(store, "the", kind).latents.tolist() for kind in ("label", "text", "token", "logit")}
    score = {}
    for kind in ("text", "token", "logit"):
        for rank, latent in enumerate(kinds[kind]):
            score[latent] = score.get(latent, 0) + 1 / (61 + rank)
    del score[17]
    found = search(store, "the")
    assert found.latents.tolist() == [17, *sorted(score, key=lambda latent: (-score[latent], latent))]
    assert found.total == len(score) + 1
    assert "1 by label" in found.why
    assert fuse(np.array([3]), [np.array([3, 1])], 4).tolist() == [3, 1]


@pytest.mark.parametrize("kind", ["label", "text", "token", "logit", "any"])
def test_every_query_is_a_plain_string(store, kind):
    for query in [
        "A" * 10_000,
        "aaaa" * 2500,
        "[a-z]*",
        "%_%",
        "' OR 1=1 --",
        "\x00",
        "\ud800\udc00",
        "\udfff",
        "\u202e",
        "(((" * 300,
    ]:
        found = search(store, query, kind)
        assert found.total == len(found.latents)
        assert len(found.why) < 400
        found.why.encode()
        assert found.why.isprintable()
    found = search(store, "", kind)
    assert (found.total, found.latents.tolist()) == (0, [])
    assert "empty" in found.why


def test_an_unknown_kind_is_a_user_error(store):
    with pytest.raises(UserError, match="label, text, token, logit and any"):
        search(store, "x", "regex")


@pytest.mark.parametrize(
    "name, value",
    [
        ("example_rows", torch.full((60, 6), 700)),
        ("token_ids", torch.full((60, 4), len(VOCAB)).int()),
        ("top_logit_tokens", torch.full((60, 3), -2).int()),
        ("tokens", torch.full((700,), len(VOCAB)).int()),
        ("positions", torch.full((700,), 5).int()),
    ],
)
def test_arrays_that_point_nowhere_are_a_user_error(tmp_path, name, value):
    store = made(tmp_path, **{name: value})
    with pytest.raises(UserError, match="collect it anew"):
        search(store, "the", "any")


def test_a_store_without_logits_says_so(tmp_path):
    store = made(tmp_path)
    write_tensors(tmp_path / "features.safetensors", {k: v for k, v in store.arrays.items() if "logit" not in k})
    assert "no logits" in search(store, "the", "logit").why
    assert search(store, "the").total > 0


def test_the_index_goes_with_its_store(tmp_path):
    import gc
    import weakref

    store = made(tmp_path)
    search(store, "the", "any")
    index = weakref.ref(index_of(store))
    del store
    gc.collect()
    assert index() is None


@pytest.mark.parametrize("hostile", [False, True])
def test_a_real_store_can_be_searched(tmp_path, hostile):
    store = fakes.store(tmp_path / "store", hostile=hostile)
    store.set_label(5, "animals that jump")
    assert search(store, "jump", "label").latents.tolist() == [5]
    assert 5 in search(store, "jump").latents.tolist()
    assert search(store, "quick brown", "text").total > 0
    assert search(store, "fox", "logit").total > 0
    for query in fakes.HOSTILE:
        search(store, query)


def test_firing_ranks_by_the_largest_kept_value():
    values = torch.tensor([[3.0, 2.0, 0.0], [9.0, 2.0, 1.0], [3.0, 0.5, 0.0]])
    indices = torch.tensor([[4, 7, 0], [1, 4, 7], [7, 2, 0]])
    kept = torch.tensor([True, False, True])
    assert rank_firing(Codes(values, indices), kept).tolist() == [7, 4, 2], (
        "7 and 4 reach 3.0; 7 fires on two kept tokens"
    )
    assert rank_firing(Codes(values, indices), torch.tensor([True] * 3)).tolist() == [1, 7, 4, 2]
    largest = torch.tensor([1.0, 10.0, 0.6, 1.0, 3.0, 1.0, 1.0, 30.0])
    assert rank_firing(Codes(values, indices), kept, largest).tolist() == [4, 2, 7]
    assert rank_firing(Codes(values, indices), torch.tensor([False] * 3)).tolist() == []


def test_many_latents_are_searched_in_a_tenth_of_a_second(tmp_path):
    latents, rows = 131_072, 500_000
    generator = torch.Generator().manual_seed(0)
    size = len(VOCAB)

    def ids(*shape):
        return torch.randint(0, size, shape, generator=generator).int()

    arrays = {"count": torch.full((latents,), 100), "example_rows": torch.randint(0, rows, (latents, 16), generator=generator).int(),
              "example_values": torch.rand(latents, 16, generator=generator), "token_ids": ids(latents, 8),
              "token_counts": ids(latents, 8), "top_logit_tokens": ids(latents, 10), "bottom_logit_tokens": ids(latents, 10),
              "top_logit_values": torch.rand(latents, 10, generator=generator),
              "bottom_logit_values": torch.rand(latents, 10, generator=generator)}  # fmt: skip
    write_tensors(tmp_path / "features.safetensors", arrays)
    text = {"tokens": ids(rows), "positions": (torch.arange(rows) % 128).int()}
    text["tokens"][::5000] = 11  # Straße
    text["tokens"] = torch.where((text["tokens"] == 11) & (torch.arange(rows) % 5000 != 0), 3, text["tokens"]).int()
    write_tensors(tmp_path / "tokens.safetensors", text)
    write_json(tmp_path / "manifest.json", {})
    store = Store(
        folder=tmp_path, manifest={"before": 20, "after": 11}, vocabulary=VOCAB, number=latents, labels=Labels(tmp_path)
    )
    Labels(tmp_path).add_rows([{"latent": latent, "label": f"label {latent}"} for latent in range(2000)])
    for kind, query in (("text", "straße"), ("token", "Paris"), ("logit", "Paris"), ("label", "label 77")):
        search(store, query, kind)
        seconds = []
        for _ in range(3):
            start = time.thread_time()
            assert search(store, query, kind).total > 0
            seconds.append(time.thread_time() - start)
        assert min(seconds) < 0.1, (kind, seconds)
