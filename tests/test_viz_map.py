"""The map: its answers, the action that makes it, and the page in a browser over a hostile vocabulary."""

import shutil
import threading

import fakes
import pytest
import torch
from saes_toys import dictionary
from unweave.saes import FeatureStore, UserError
from unweave.saes.io import read_json, write_json
from unweave.saes.latents.across import maps as layouts
from unweave.saes.latents.across.maps import Layout, write_map
from unweave.viz import serve
from unweave.viz.actions import run_stream
from unweave.viz.answers import answer, maps
from unweave.viz.live import Live
from unweave.viz.things import open_things

FINGERPRINT = "f" * 16


def with_map(folder, latents: int = 64, *, hostile: bool = False) -> FeatureStore:
    """A store and a map on which latent i lies at (i mod 8, i div 8), so that a test knows where to point."""
    store = fakes.store(folder, latents, hostile=hostile)
    places = torch.arange(latents)
    wide = max(int(latents**0.5), 8)
    xy = torch.stack([places % wide, places // wide], 1).float()
    write_map(store, Layout(xy, "umap", {"metric": "cosine", "neighbours": 15, "seed": 0}), FINGERPRINT)
    return store


def test_answers_tell_of_the_map_and_carry_it(tmp_path):
    bare = fakes.store(tmp_path / "bare", 20)
    things = open_things([with_map(tmp_path / "mapped"), bare])
    assert answer(things, "stores/0/map")["map"]["method"] == "umap" and answer(things, "stores/1/map")["map"] is None
    y = torch.frombuffer(bytearray(answer(things, "stores/0/columns/map_y")), dtype=torch.float32)
    assert y.tolist() == [place // 8 for place in range(64)]
    for path in ("stores/1/columns/map_x", "stores/0/columns/map_z", "stores/7/map"):
        with pytest.raises(KeyError):
            answer(things, path)
    carried = dict(maps.frozen_map(things, 0, [9, 17]))
    assert carried["stores/0/columns/map_x"] == [1.0, 1.0] and carried["stores/0/columns/map_y"] == [1.0, 2.0]
    assert dict(maps.frozen_map(things, 1, [1])) == {}


def test_a_damaged_map_is_told_and_not_shown(tmp_path):
    store = with_map(tmp_path / "one")
    (store.folder / "map.safetensors").write_bytes(b"\x00" * 40)
    found = answer(open_things([store]), "stores/0/map")
    assert found["map"] is None and "make it again" in found["why"]


@pytest.fixture
def described(tmp_path):
    """A store beside the dictionary that its manifest names."""
    own = dictionary(12, 40, dtype=torch.float32)
    own.save(tmp_path / "own")
    store = fakes.store(tmp_path / "store", 40, fingerprint=own.fingerprint)
    manifest = read_json(store.folder / "manifest.json", "a manifest")
    manifest["dictionary"]["folder"] = str(tmp_path / "own")
    write_json(store.folder / "manifest.json", manifest)
    return open_things([FeatureStore.open(store.folder)])


def test_the_action_makes_a_map_and_says_how_far_it_is(described):
    lines = list(run_stream(Live(described), "map", {"store": 0, "method": "pca"}))
    assert lines[-1]["done"]["map"]["method"] == "pca"
    assert answer(described, "stores/0/map")["map"]["settings"]["metric"] == "cosine"
    x = torch.frombuffer(bytearray(answer(described, "stores/0/columns/map_x")), dtype=torch.float32)
    assert x.unique().numel() == 40


def test_progress_is_heard_while_the_map_is_made(described, monkeypatch):
    gate = threading.Event()

    def slow(own, method, *, seed, tell):
        tell("neighbours", 0.5)
        assert gate.wait(10)
        return Layout(torch.zeros(40, 2), method, {})

    monkeypatch.setattr("unweave.viz.actions.maps.map_layout", slow)
    lines = iter(run_stream(Live(described), "map", {"store": 0}))
    assert next(lines) == {"stage": "neighbours", "share": 0.5}
    gate.set()
    assert "done" in next(lines)


def test_a_map_that_cannot_be_made_says_why(described, tmp_path):
    with pytest.raises(UserError, match="tsne"):
        list(run_stream(Live(described), "map", {"store": 0, "method": "tsne"}))
    with pytest.raises(UserError, match="whole number"):
        list(run_stream(Live(described), "map", {"store": 0, "seed": "x"}))
    lost = fakes.store(tmp_path / "lost", 10)
    with pytest.raises(UserError, match="dictionary"):
        list(run_stream(Live(open_things([lost])), "map", {"store": 0}))
    assert not (lost.folder / layouts.FILE).exists()


sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is missing: pip install playwright")
CHROMIUM = shutil.which("chromium")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="chromium is missing: apt-get install chromium")


@pytest.fixture(scope="module")
def chromium():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def tab(chromium, tmp_path_factory):
    base = tmp_path_factory.mktemp("map")
    store = with_map(base / "hostile", hostile=True)
    store.labels.set(9, label=fakes.HOSTILE[0], is_starred=True)
    address = serve([store, fakes.store(base / "bare", 12)], open=False, block=False)
    page = chromium.new_page(viewport={"width": 1280, "height": 800})
    wrong: list[str] = []
    page.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.goto(address + "#pane=map")
    drawn(page)
    yield page
    assert page.evaluate("window.__pwned") is None and not wrong


def drawn(page):
    page.wait_for_selector("[data-testid=map-box][data-drawn]", timeout=60_000)
    return page.get_by_test_id("map-box").bounding_box()


def fresh(page, hash: str):
    page.goto(page.url.split("#")[0] + "#pane=overview")
    page.goto(page.url.split("#")[0] + hash)
    return drawn(page)


def spot(box, column: int, row: int) -> tuple[float, float]:
    """Where the point at (column, row) of the 8 by 8 grid is drawn, in pixels of the page."""
    per = 0.88 * min(box["width"], box["height"]) / 7
    return box["x"] + box["width"] / 2 + (column - 3.5) * per, box["y"] + box["height"] / 2 - (row - 3.5) * per


@needs_chromium
def test_a_point_tells_what_it_is_and_opens_its_card(tab):
    box = fresh(tab, "#pane=map")
    tab.mouse.move(*spot(box, 1, 1))
    sync_api.expect(tab.get_by_test_id("map-tip")).to_contain_text("Latent 9")
    sync_api.expect(tab.get_by_test_id("map-tip")).to_contain_text("onerror")
    tab.mouse.click(*spot(box, 5, 2))
    tab.wait_for_selector("[data-testid=card][data-latent='21']")
    assert "latent=21" in tab.url
    tab.keyboard.press("Escape")
    sync_api.expect(tab.get_by_test_id("card")).to_have_count(0)


@needs_chromium
def test_the_map_is_moved_by_keys_and_remembered_in_the_address(tab):
    fresh(tab, "#pane=map")
    for name in ("+", "+", "+", "ArrowRight", "ArrowUp"):
        tab.keyboard.press(name)
    tab.wait_for_url("**mapview=*")
    x, y, zoom = map(float, tab.evaluate("decodeURIComponent(location.hash.match(/mapview=([^&]*)/)[1])").split(","))
    assert zoom == pytest.approx(1.4**3, rel=1e-4) and x > 3.5 and y > 3.5
    tab.keyboard.press("j")
    sync_api.expect(tab.get_by_test_id("map-tip")).to_be_visible()
    nearest = min(range(64), key=lambda latent: (latent % 8 - x) ** 2 + (latent // 8 - y) ** 2)
    sync_api.expect(tab.get_by_test_id("map-tip")).to_contain_text(f"Latent {nearest}")
    tab.keyboard.press("o")
    tab.wait_for_selector(f"[data-testid=card][data-latent='{nearest}']")
    tab.keyboard.press("0")
    tab.wait_for_timeout(400)
    assert "mapview" not in tab.url


@needs_chromium
def test_latents_drawn_around_go_to_the_list(tab):
    box = fresh(tab, "#pane=map")
    tab.keyboard.press("s")
    (left, top), (right, bottom) = spot(box, 2, 5), spot(box, 4, 4)
    corners = [(left - 20, top - 20), (right + 20, top - 20), (right + 20, bottom + 20), (left - 20, bottom + 20)]
    tab.mouse.move(*corners[0])
    tab.mouse.down()
    for corner in corners[1:]:
        tab.mouse.move(*corner, steps=3)
    tab.mouse.up()
    sync_api.expect(tab.get_by_test_id("map-found")).to_have_text("6 selected")
    tab.get_by_test_id("map-list").click()
    wanted = sorted(8 * row + column for row in (4, 5) for column in (2, 3, 4))
    assert (
        sorted(map(int, tab.evaluate("decodeURIComponent(location.hash.match(/among%3A([^&]*)/)[1])").split(",")))
        == wanted
    )


@needs_chromium
def test_colours_follow_the_statistic(tab):
    fresh(tab, "#pane=map")
    sync_api.expect(tab.get_by_test_id("map-legend")).to_contain_text("density (log)")
    sync_api.expect(tab.get_by_test_id("map-missing")).to_contain_text("1 without")
    before = tab.evaluate("document.querySelector('.map-points').toDataURL()")
    tab.get_by_label("Colour", exact=True).select_option(label="token entropy")
    sync_api.expect(tab.get_by_test_id("map-legend")).to_contain_text("token entropy")
    tab.wait_for_timeout(200)
    assert tab.evaluate("document.querySelector('.map-points').toDataURL()") != before
    assert "mapcolour=token_entropy" in tab.url


@needs_chromium
def test_what_is_found_is_brought_out(tab):
    fresh(tab, "#pane=map")
    tab.keyboard.press("/")
    tab.keyboard.type("onerror")
    sync_api.expect(tab.get_by_test_id("map-found")).to_contain_text("found")
    sync_api.expect(tab.get_by_test_id("map-list")).to_be_visible()
    tab.keyboard.press("Escape")
    tab.keyboard.press("Escape")
    sync_api.expect(tab.get_by_test_id("map-list")).to_be_hidden()


@needs_chromium
def test_a_store_without_a_map_offers_to_make_one(tab):
    tab.goto(tab.url.split("#")[0] + "#pane=map&store=1")
    tab.wait_for_selector("[data-testid=no-map]")
    tab.get_by_test_id("make-pca").click()
    sync_api.expect(tab.get_by_test_id("map-job")).to_contain_text("dictionary")  # there is none beside a fake store
    tab.get_by_label("Store").select_option("0")
    drawn(tab)
