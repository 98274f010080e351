"""Two stores compared: the numbers of the page against their definitions, and the page in a browser."""

import json
import shutil

import fakes
import pytest
import torch
from saes_toys import RESID, cached, dictionary, model
from unweave.saes import Dictionary, FeatureStore, UserError, collect
from unweave.saes.io import read_tensors, write_tensors
from unweave.saes.latents.across import matches
from unweave.saes.latents.across.matches import (
    cannot_correlate,
    match_file,
    pair_activity,
    read_matching,
    write_matching,
)
from unweave.saes.latents.across.matching import Matching, Side, match_activations, match_decoders, one_to_one
from unweave.viz import serve
from unweave.viz.actions import run_stream
from unweave.viz.answers import answer, compare, matchings
from unweave.viz.answers.match_numbers import match_values
from unweave.viz.live import Live
from unweave.viz.things import Things, open_things

LATENTS = (24, 31)
TUNED, MOVED = {"fingerprint": "0" * 64}, {"site": "blocks.0.hook_resid_post", "site_out": None}
APART = {"tuned": {"model": TUNED}, "moved": {"dictionary": MOVED}, "both": {"model": TUNED, "dictionary": MOVED}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two dictionaries of one site, their stores on one text, and a third store on another text, without kept codes."""
    base = tmp_path_factory.mktemp("compare")
    shards, elsewhere = cached(base / "shards", count=40), cached(base / "elsewhere", count=10)
    for place, latents in enumerate(LATENTS):
        own = dictionary(latents=latents, seed=place, dtype=torch.float32)
        if place:
            own.W_dec.data[3] = 2 * Dictionary.load(base / "dictionaries" / "one").W_dec[7]
        own.save(base / "dictionaries" / ("one", "two")[place])
        collect(own, shards, base / "features" / ("one", "two")[place], model(), progress=False)
    other = Dictionary.load(base / "dictionaries" / "one")
    collect(other, elsewhere, base / "features" / "other", model(), progress=False, codes_mib=0)
    for name, changes in APART.items():
        told_otherwise(base / "features" / "two", base / "features" / name, changes)
    return base


def told_otherwise(source, folder, changes):
    """A copy of a store whose manifest says something else of its model or dictionary."""
    shutil.copytree(source, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    for part, known in changes.items():
        manifest[part] |= known
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.fixture
def things(folder) -> Things:
    return open_things([folder / "features" / name for name in ("one", "two", "other")])


def dense(things: Things, place: int) -> torch.Tensor:
    codes = list(things.stores.values())[place].codebook
    return codes.at(torch.arange(codes.rows)).dense(codes.latents).double()


def test_both_methods_are_known_where_they_can_be(things):
    found = answer(things, "compare/0/1")
    assert [found[side]["latents"] for side in "ab"] == list(LATENTS)
    assert found["methods"]["cosine"]["found"] and found["methods"]["correlation"]["found"]
    other = answer(things, "compare/0/2")
    assert other["methods"]["cosine"]["found"]["a"]["above"][0] == other["methods"]["cosine"]["found"]["a"]["latents"]
    assert (
        "different texts" in other["methods"]["correlation"]["why"] and other["methods"]["correlation"]["found"] is None
    )
    for wrong in ("compare/0/0", "compare/0/9", "compare/0/1/latents/24"):
        with pytest.raises(KeyError):
            answer(things, wrong)


@pytest.mark.parametrize(
    ("name", "is_site", "is_model"),
    [("two", True, True), ("tuned", True, False), ("moved", False, True), ("both", False, False)],
)
def test_a_model_and_a_place_are_told_apart(folder, name, is_site, is_model):
    found = answer(open_things([folder / "features" / "one", folder / "features" / name]), "compare/0/1")
    assert (found["is_site"], found["is_model"]) == (is_site, is_model)


def test_a_model_without_a_fingerprint_goes_by_its_name(folder, tmp_path):
    for name, called in (("same", {}), ("other", {"name": "another"})):
        told_otherwise(folder / "features" / "two", tmp_path / name, {"model": {"fingerprint": None} | called})
        found = answer(open_things([folder / "features" / "one", tmp_path / name]), "compare/0/1")
        assert found["is_model"] == (name == "same")


def test_columns_are_the_best_partners(things):
    rows = [matchings.decoder(things, store).double() for store in list(things.stores.values())[:2]]
    cosine = torch.nn.functional.cosine_similarity(rows[0][:, None], rows[1][None], dim=2)
    read = lambda name: torch.frombuffer(bytearray(answer(things, f"stores/0/columns/{name}_1")), dtype=torch.float32)  # noqa: E731
    torch.testing.assert_close(read("cosine_score").double(), cosine.amax(1), atol=1e-6, rtol=0)
    assert torch.equal(read("cosine_match").long(), cosine.argmax(1))
    best = cosine.argmax(1)
    assert torch.equal(read("cosine_mutual").bool(), cosine.argmax(0)[best] == torch.arange(LATENTS[0]))
    assert read("cosine_pair")[7] == 3 and read("cosine_pair_score")[7] == pytest.approx(1, abs=1e-6)
    pair = read("cosine_pair")
    known = ~pair.isnan()
    assert len(pair[known].unique()) == int(known.sum())
    torch.testing.assert_close(
        read("cosine_pair_score")[known].double(), cosine[known.nonzero()[:, 0], pair[known].long()], atol=1e-6, rtol=0
    )
    table = torch.corrcoef(torch.cat([dense(things, 0), dense(things, 1)], 1).T)[: LATENTS[0], LATENTS[0] :].nan_to_num(
        0
    )
    score = read("correlation_score")
    assert bool((score.isnan() == (table.amax(1) <= 0)).all())
    torch.testing.assert_close(score.nan_to_num(0).double(), table.amax(1).clamp_min(0), atol=1e-6, rtol=0)


def test_a_pair_that_only_one_side_names_has_its_score():
    a = Side(torch.tensor([[0], [0]]), torch.tensor([[0.9], [0.8]]))
    b = Side(torch.tensor([[0], [1]]), torch.tensor([[0.9], [0.3]]))
    found = Matching(a, b, *one_to_one(a, b), torch.empty(0))
    assert match_values(found, "pair").tolist() == [0, 1]
    torch.testing.assert_close(match_values(found, "pair_score"), torch.tensor([0.9, 0.3]))


def test_shares_count_what_fires(things):
    found = answer(things, "compare/0/1")["methods"]["cosine"]["found"]
    alive = list(things.stores.values())[0].count > 0
    score = torch.frombuffer(bytearray(answer(things, "stores/0/columns/cosine_score_1")), dtype=torch.float32)[alive]
    assert found["a"]["latents"] == int(alive.sum()) == sum(found["a"]["counts"])
    assert found["a"]["above"] == [int((score > level).sum()) for level in (0.9, 0.7, 0.5)]
    assert found["a"]["counts"] == torch.histc(score.clamp(0, 1), 40, 0, 1).long().tolist()


def test_a_pair_counts_where_both_fire(things):
    a, b = dense(things, 0), dense(things, 1)
    table = torch.corrcoef(torch.cat([a, b], 1).T)[: LATENTS[0], LATENTS[0] :]
    names = [f"{i}-{j}" for i in range(0, 24, 5) for j in range(0, 31, 4)]
    found = answer(things, f"compare/0/1/pairs/{','.join(names)}")
    for name in names:
        i, j = map(int, name.split("-"))
        one = found[name]
        fires = a[:, i] > 0, b[:, j] > 0
        assert one["both"] == int((fires[0] & fires[1]).sum())
        assert (one["only_a"], one["only_b"]) == (int((fires[0] & ~fires[1]).sum()), int((fires[1] & ~fires[0]).sum()))
        if one["correlation"] is None:
            assert not (fires[0].any() and fires[1].any())
        else:
            assert one["correlation"] == pytest.approx(float(table[i, j]), abs=6e-4)
    apart = answer(things, "compare/0/2/pairs/7-7")["7-7"]
    assert apart["cosine"] == 1 and apart["both"] is None and apart["correlation"] is None


def test_shared_texts_carry_the_activations_of_both(things):
    a, b = dense(things, 0), dense(things, 1)
    found = answer(things, "compare/0/1/pairs/7-3/texts")["texts"]
    assert {one["from"] for one in found} == {"a", "b"} and len({one["row"] for one in found}) == len(found)
    for one in found:
        first = one["row"] - one["focus"]
        span = slice(first, first + len(one["tokens"]))
        torch.testing.assert_close(torch.tensor(one["a"]), a[span, 7].float(), atol=1e-6, rtol=6e-3)
        torch.testing.assert_close(torch.tensor(one["b"]), b[span, 3].float(), atol=1e-6, rtol=6e-3)
    assert answer(things, "compare/0/2/pairs/7-7/texts")["texts"] is None


def test_partners_are_named_with_their_labels(things):
    store = list(things.stores.values())[1]
    store.set_label(3, fakes.HOSTILE[0])
    first = answer(things, "compare/0/1/latents/7")["cosine"][0]
    assert (first["latent"], first["score"], first["is_mutual"], first["is_pair"]) == (3, 1.0, True, True)
    assert first["label"] == fakes.HOSTILE[0]


def test_a_matching_is_kept_both_ways_and_for_no_other_store(things, tmp_path):
    one, two, other = things.stores.values()
    rows = [matchings.decoder(things, store) for store in (one, two)]
    made = {"cosine": match_decoders(*rows), "correlation": match_activations(one.codebook, two.codebook)}
    try:
        for method, found in made.items():
            write_matching(one, two, method, found)
            kept, back = read_matching(one, two, method), read_matching(two, one, method)
            assert all(
                torch.equal(x, y)
                for x, y in zip([*kept.a, *kept.b, *kept[2:]], [*found.a, *found.b, *found[2:]], strict=True)
            )
            assert torch.equal(back.a.best, found.b.best) and torch.equal(back.pair_a, found.pair_b)
        assert read_matching(one, other, "correlation") is None
        path = match_file(one, two, "cosine")
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(UserError, match="match the stores again"):
            read_matching(one, two, "cosine")
        path.write_bytes(whole)
        broken = made["cosine"]._replace(pair_a=torch.full((LATENTS[0],), 99))
        write_matching(one, two, "cosine", broken)
        with pytest.raises(UserError, match="do not fit together"):
            read_matching(one, two, "cosine")
    finally:
        shutil.rmtree(one.folder / "matches")


def test_what_takes_long_is_an_action_and_is_kept(things, monkeypatch):
    monkeypatch.setattr(matchings, "PRODUCTS", 10)
    monkeypatch.setattr(matchings, "SUMS", 1)
    live = Live(things)
    assert answer(things, "compare/0/1")["methods"]["cosine"] == {"why": None, "found": None}
    try:
        for method in ("cosine", "correlation"):
            lines = list(run_stream(live, "match", {"a": 0, "b": 1, "method": method}))
            assert lines[-1] == {"done": {"method": method}} and all(0 <= line["share"] <= 1 for line in lines[:-1])
            assert len(lines) > 1 and answer(things, "compare/1/0")["methods"][method]["found"]
    finally:
        shutil.rmtree(list(things.stores.values())[0].folder / "matches")
        matchings.forget_matchings()
    for body in (
        {"a": 0, "b": 0, "method": "cosine"},
        {"a": 0, "b": 1, "method": "x"},
        {"a": 0, "b": 2, "method": "correlation"},
    ):
        with pytest.raises(UserError):
            list(run_stream(live, "match", body))


def test_a_store_whose_dictionary_is_gone_says_so(folder, tmp_path):
    shutil.copytree(folder / "features" / "one", tmp_path / "one")
    manifest = json.loads((tmp_path / "one" / "manifest.json").read_text())
    manifest["dictionary"]["folder"] = str(tmp_path / "nowhere")
    (tmp_path / "one" / "manifest.json").write_text(json.dumps(manifest))
    found = answer(open_things([tmp_path / "one", folder / "features" / "two"]), "compare/0/1")
    assert "found it nowhere" in found["methods"]["cosine"]["why"] and found["methods"]["correlation"]["found"]


def test_texts_must_agree_in_every_token(things, tmp_path):
    one, two, _ = things.stores.values()
    assert cannot_correlate(one, two) is None
    shutil.copytree(two.folder, tmp_path / "two")
    text = read_tensors(two.folder / "tokens.safetensors", "the text")
    text["tokens"][5] = (text["tokens"][5] + 1) % len(two.vocabulary)
    write_tensors(tmp_path / "two" / "tokens.safetensors", text)
    assert "different texts" in (cannot_correlate(one, FeatureStore.open(tmp_path / "two")) or "")


def test_pairs_without_codes_are_not_known(things):
    one, _, other = things.stores.values()
    assert pair_activity(one, other, 0, 0) is None


def test_a_page_carries_the_pairs_of_its_latents(things):
    carried = {0: [7, 2], 1: [3, 5], 2: []}
    found = dict(compare.frozen_compare(things, carried))
    assert found["stores/0/columns/cosine_match_1"][0] == 3 and len(found["stores/1/columns/cosine_score_0"]) == 2
    assert "7-3" in found["compare/0/1/pairs"] and found["compare/0/1/pairs/7-3/texts"]["texts"]
    assert found["compare/1/0"]["a"]["latents"] == LATENTS[1] and "compare/0/1/latents/2" in found
    assert dict(compare.frozen_compare(Things(), {})) == {}
    assert matches.METHODS == ("cosine", "correlation") and RESID in found["compare/0/1"]["a"]["site"]


sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is missing: pip install playwright")
CHROMIUM = shutil.which("chromium")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="chromium is missing: apt-get install chromium")


@pytest.fixture(scope="module")
def tab(folder):
    """A tab on the comparison; nothing wrong may have been said at its end."""
    shown = [folder / "features" / name for name in ("one", "two", "other", *APART)]
    address = serve(shown, open=False, block=False)
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        wrong: list[str] = []
        page.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto(address + "#pane=compare")
        page.wait_for_selector("[data-testid=compare-row]", timeout=60_000)
        yield page
        assert page.evaluate("window.__pwned") is None and not wrong
        browser.close()


@needs_chromium
def test_the_table_is_walked_by_key_and_the_pair_is_drawn(tab):
    rows = tab.get_by_test_id("compare-row")
    assert rows.first.get_attribute("data-latent") == "7"  # the copied direction
    tab.keyboard.press("j")
    tab.wait_for_selector("[data-testid=compare-pair] [data-testid=pair-facts]")
    assert (
        "latent 7" in tab.get_by_test_id("pair-a").inner_text()
        and "latent 3" in tab.get_by_test_id("pair-b").inner_text()
    )
    assert tab.get_by_test_id("pair-text").count() >= 2
    tab.keyboard.press("j")
    second = rows.nth(1).get_attribute("data-latent")
    tab.wait_for_selector(f"[data-testid=compare-row][data-latent='{second}'][aria-selected=true]")
    sync_api.expect(tab.get_by_test_id("pair-a")).to_have_text(f"latent {second}")


@needs_chromium
def test_only_in_a_and_swap(tab):
    tab.goto(tab.url.split("#")[0] + "#pane=compare&latent=7")
    tab.wait_for_selector("[data-testid=pair-a]")
    tab.keyboard.press("u")
    sync_api.expect(tab.locator("[data-testid=compare-row][data-latent='7']")).to_have_count(0)
    tab.keyboard.press("u")
    tab.keyboard.press("x")
    sync_api.expect(tab.get_by_test_id("pair-a")).to_have_text("latent 3")
    sync_api.expect(tab.get_by_test_id("pair-b")).to_have_text("latent 7")
    tab.keyboard.press("m")
    tab.wait_for_selector("[data-testid=compare-by-correlation][aria-pressed=true]")
    assert "compare_by=correlation" in tab.url


@needs_chromium
def test_stores_without_a_common_text_say_why(tab):
    tab.goto(tab.url.split("#")[0] + "#pane=compare&compare_with=2&compare_by=correlation")
    sync_api.expect(tab.get_by_test_id("compare-why")).to_contain_text("different texts")
    tab.get_by_test_id("compare-by-cosine").click()
    sync_api.expect(tab.get_by_test_id("compare-summary")).to_contain_text("100 %")


@needs_chromium
@pytest.mark.parametrize(
    ("place", "said", "unsaid"),
    [
        (3, "A and B are of different models", "places"),
        (4, "A and B write different places:", "models"),
        (5, "A and B write different places of different models", "the model's"),
    ],
)
def test_the_page_says_whether_models_or_places_differ(tab, place, said, unsaid):
    tab.goto(tab.url.split("#")[0] + f"#pane=compare&compare_with={place}&compare_by=cosine")
    told = tab.get_by_test_id("compare-apart")
    sync_api.expect(told).to_contain_text(said)
    sync_api.expect(told).not_to_contain_text(unsaid)
    tab.goto(tab.url.split("#")[0] + "#pane=compare&compare_with=1&compare_by=cosine")
    sync_api.expect(told).to_have_count(0)
