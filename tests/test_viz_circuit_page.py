"""The circuit page in a real browser: pins, groups, walks, experiments, views; and that the saved page says the same as the live one."""

import json
import math
import re

import fakes
import pytest
import torch
from fake_live import serving
from unweave.circuits import QKTable
from unweave.circuits.attention.qk import Pair
from unweave.viz import write_page
from unweave.viz.answers import answer
from unweave.viz.live import Live
from unweave.viz.things import open_things

expect = pytest.importorskip("playwright.sync_api", reason="playwright is missing: pip install playwright").expect


class Fake(Live):
    """A live host whose experiments are made up, with hostile words in them."""

    def abilities(self):
        return {"view", "label", "validate", "qk"}

    def validate(self, place, nodes):
        size = [0.1 * (number + 1) for number in range(len(nodes))]
        alone = {
            "nodes": nodes,
            "predicted": size,
            "measured": [-one for one in size],
            "node_controls": [[0.01]] * len(nodes),
        }
        together = {"top_predicted": 1.0, "top_measured": 0.5, "control_measured": [0.1, 0.2]}
        return alone | together | {"spearman": -1.0, "interval": [-1.0, math.nan], "warnings": [fakes.HOSTILE[0]]}

    def qk(self, place, layer, head, query, key):
        nodes = self.graph(place).nodes[:24]
        factors = torch.randn(2, 24, 4, generator=torch.Generator().manual_seed(head), dtype=torch.float64)
        score = float(factors[0].sum(0) @ factors[1].sum(0))
        return QKTable(layer, head, query, key, score, 0.0, None, nodes, tuple(range(24)), (Pair(0, 1, 0.5),), *factors)


@pytest.fixture(scope="module")
def things(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    opened = open_things([fakes.demo(folder, hostile=True), fakes.graph(seed=0)])
    opened.files = {"circuit": folder / "circuit.graph"}
    return opened


@pytest.fixture(scope="module")
def live(things):
    with serving(Fake(things)) as address:
        yield address


@pytest.fixture(scope="module")
def saved(things, tmp_path_factory):
    return write_page(tmp_path_factory.mktemp("page") / "page.html", things, cards=8).as_uri()


@pytest.fixture
def page(browser):
    """A tab that opens an address at a hash, and in the end must have run nothing of the data and logged nothing wrong."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    tab, wrong = context.new_page(), []
    tab.on("console", lambda said: wrong.append(said.text) if said.type in ("error", "warning") else None)
    tab.on("pageerror", lambda error: wrong.append(str(error)))
    tab.on("dialog", lambda dialog: (wrong.append(dialog.message), dialog.dismiss()))

    def show(address, hash):
        tab.goto(address + hash)
        tab.wait_for_selector("body[data-ready=yes]", timeout=60_000)
        return tab

    yield show
    assert tab.evaluate("window.__pwned") is None
    assert not wrong
    context.close()


def chosen(things, place=0):
    """Some features that the picture of a circuit shows, by layer: two each of layers 5 and 4, one of layer 2."""
    nodes = answer(things, f"graphs/{place}")["nodes"]
    of = {
        layer: [item for item, one in nodes.items() if "x" in one and one["kind"] == "neuron" and one["layer"] == layer]
        for layer in (5, 4, 2)
    }
    return [*of[5][:2], *of[4][:2], of[2][0]]


def edges(tab):
    """What the pinned picture says of each edge: sum of weights, percentage of the target's row."""
    tab.get_by_test_id("pinned-picture").wait_for()
    said = "edges.map((edge) => [`${edge.dataset.target} ${edge.dataset.source}`, edge.querySelector('title').textContent])"
    texts = tab.get_by_test_id("pinned-edge").evaluate_all(f"edges => Object.fromEntries({said})")
    return {edge: [float(part) for part in re.findall(r"[\d.]+(?:e-\d+)?", text)] for edge, text in texts.items()}


def test_pins_are_made_by_key_and_by_shift_click_and_stand_in_the_address(page, live, things):
    tab = page(live, "#pane=circuit")
    first, second = chosen(things)[:2]
    tab.locator(f"[data-node='{first}']").click()
    tab.keyboard.press("p")
    tab.locator(f"[data-node='{second}']").click(modifiers=["Shift"])
    tab.get_by_test_id("pinned-box").nth(1).wait_for()
    assert f"pins={first}.{second}" in tab.url
    assert tab.locator(f"[data-node='{second}']").get_attribute("aria-pressed") == "true"
    tab.reload()
    expect(tab.get_by_test_id("pin-row")).to_have_count(2)
    tab.get_by_test_id("clear-pins").click()
    tab.get_by_test_id("pin-path").wait_for()
    assert "pins" not in tab.url


def test_pins_become_a_group_that_is_renamed_folded_out_and_dissolved(page, live, things):
    a, b, *_ = chosen(things)
    target = things.graphs["circuit"].targets[0]
    tab = page(live, f"#pane=circuit&pins={a}.{b}.{target}")
    tab.get_by_test_id("group-name").fill("two & <b>more</b>|:.")
    for item in (0, 1):
        tab.get_by_test_id("pin-row").nth(item).locator("input").check()
    tab.get_by_test_id("group").click()
    expect(tab.get_by_test_id("pinned-box")).to_have_count(2)
    name = tab.get_by_test_id("group-row").locator("input")
    assert name.input_value() == "two & <b>more</b>|:."
    name.fill("renamed")
    name.press("Enter")
    expect(tab).to_have_url(re.compile("renamed"))
    tab.get_by_test_id("joined").uncheck()
    expect(tab.get_by_test_id("pinned-box")).to_have_count(3)
    tab.get_by_text("Dissolve").click()
    expect(tab.get_by_test_id("pin-row")).to_have_count(3)


def test_a_group_of_two_kinds_is_refused_in_words(page, live, things):
    a, target = chosen(things)[0], things.graphs["circuit"].targets[0]
    tab = page(live, f"#pane=circuit&pins={a}.{target}")
    tab.get_by_test_id("group").click()
    assert "one kind" in tab.get_by_test_id("pinned-told").inner_text()
    assert tab.get_by_test_id("group-row").count() == 0


def test_the_saved_page_sums_groups_as_the_server_does(page, live, saved, things):
    a, b, c, d, e = chosen(things)
    target = things.graphs["circuit"].targets[0]
    hash = f"#pane=circuit&pins={e}.{target}&groups=top:{a}.{b}|middle:{c}.{d}"
    from_server = edges(page(live, hash))
    from_page = edges(page(saved, hash))
    assert len(from_server) > 2
    assert from_page.keys() == from_server.keys()
    for edge, numbers in from_server.items():
        assert from_page[edge] == pytest.approx(numbers, rel=5e-3)  # both are rounded for the page


def test_arrow_keys_walk_along_rows_columns_and_the_strongest_edge(page, live, things):
    tab = page(live, "#pane=circuit")
    nodes = {str(item): one for item, one in answer(things, "graphs/0")["nodes"].items() if "x" in one}
    focused = lambda: tab.evaluate("document.activeElement.closest('.node')?.dataset.node ?? null")  # noqa: E731
    tab.locator("[data-testid=node][tabindex='0']").wait_for()
    assert tab.locator("[data-testid=node][tabindex='0']").count() == 1
    tab.keyboard.press("n")
    start = focused()
    assert nodes[start]["kind"] == "logit"
    tab.keyboard.press("ArrowDown")
    below = focused()
    assert nodes[below]["y"] == nodes[start]["y"] - 1
    tab.keyboard.press("ArrowRight")
    right = focused()
    row = sorted((one["x"], item) for item, one in nodes.items() if one["y"] == nodes[below]["y"])
    assert row.index((nodes[right]["x"], right)) == row.index((nodes[below]["x"], below)) + 1
    tab.keyboard.press("Shift+ArrowDown")
    strongest = next(str(source) for source, _ in nodes[right]["incoming"] if str(source) in nodes)
    assert focused() == strongest
    tab.keyboard.press("Enter")
    tab.locator(f"[data-testid=node-details][data-node='{strongest}']").wait_for()
    assert focused() == strongest


def test_the_threshold_hides_nodes_and_the_slider_edges(page, live):
    tab = page(live, "#pane=circuit")
    tab.get_by_test_id("node").first.wait_for()
    before = tab.get_by_test_id("node").count()
    tab.get_by_test_id("keep-slider").fill("40")
    expect(tab.get_by_test_id("node")).not_to_have_count(before)
    assert tab.get_by_test_id("node").count() < before
    assert "keep=40" in tab.url
    assert tab.locator("[data-testid=node].logit").count() == 2
    tab.get_by_test_id("edge-slider").fill("12")
    expect(tab.locator(".edges-drawn .edge")).to_have_count(12)


def test_more_nodes_are_drawn_when_asked(page, live):
    tab = page(live, "#pane=circuit&drawn=60")
    expect(tab.get_by_test_id("node")).to_have_count(60)
    tab.get_by_test_id("drawn").select_option("120")
    expect(tab.get_by_test_id("node")).to_have_count(120)


@pytest.mark.parametrize("host", ["live", "saved"])
def test_nodes_are_found_by_layer_and_word(page, host, request):
    tab = page(request.getfixturevalue(host), "#pane=circuit&graph=1")
    tab.keyboard.press("f")
    tab.keyboard.type("L3 latent")
    tab.get_by_test_id("found").locator("li").first.wait_for()
    found = tab.get_by_test_id("found").locator("li").all_inner_texts()
    assert all("L3 latent" in text or "animals" in text for text in found)
    assert tab.locator(".node.found").count() > 0


def test_hovering_tells_the_node_and_its_edge_to_the_chosen_one(page, live, things):
    nodes = answer(things, "graphs/0")["nodes"]
    item = chosen(things)[0]
    source, weight = next((s, w) for s, w in nodes[item]["incoming"] if "x" in nodes[s])
    tab = page(live, f"#pane=circuit&node={item}")
    tab.locator(f"[data-node='{source}']").hover()
    tip = tab.locator(".canvas .tip").inner_text()
    assert f"{abs(weight):.3g}"[:4] in tip
    assert "influence" in tip


def test_a_latents_card_stands_beside_the_picture_and_its_label_is_written(page, live, things):
    nodes = answer(things, "graphs/0")["nodes"]
    item = next(item for item, one in nodes.items() if one["kind"] == "latent" and "x" in one)
    tab = page(live, f"#pane=circuit&node={item}")
    tab.get_by_test_id("node-examples").locator("li").first.wait_for()
    assert tab.locator(".logit-line").count() == 2
    tab.get_by_test_id("node-label").fill("<i>named here</i>")
    tab.get_by_test_id("node-label-save").click()
    expect(tab.get_by_test_id("node-details").locator("h2")).to_have_text("<i>named here</i>")
    assert list(things.stores.values())[1].label(nodes[item]["index"]) == "<i>named here</i>"


def test_a_view_is_kept_beside_the_graph_and_shown_when_it_is_opened_again(page, live, things):
    a, b, c, *_ = chosen(things)
    tab = page(live, f"#pane=circuit&pins={c}&groups=kept:{a}.{b}&keep=70")
    tab.get_by_test_id("keep-view").click()
    expect(tab.get_by_test_id("view-told")).to_contain_text("circuit.view.json")
    file = things.files["circuit"].with_name("circuit.view.json")
    assert json.loads(file.read_text())["groups"] == [["kept", a, b]]
    again = page(live, "#pane=overview")
    again.evaluate("location.hash = '#pane=circuit'")
    again.get_by_test_id("group-row").wait_for()
    assert again.get_by_test_id("group-row").locator("input").input_value() == "kept"
    assert "keep=70" in again.url
    file.unlink()


def test_a_selection_is_tested_in_the_model(page, live, things):
    a, b, c, *_ = chosen(things)
    tab = page(live, f"#pane=circuit&pins={a}.{b}.{c}&sheet=validation")
    tab.get_by_test_id("validate").click()
    tab.get_by_test_id("scatter").wait_for()
    assert tab.locator(".effects-picture .effect:not(.control)").count() == 3
    assert tab.locator(".effects-picture .control").count() == 3
    assert tab.get_by_test_id("together").locator("tr").count() == 4
    assert tab.get_by_test_id("validation-warnings").inner_text() == fakes.HOSTILE[0]


def test_an_attention_score_is_a_table_of_positions_and_of_nodes(page, live):
    tab = page(live, "#pane=circuit&sheet=qk")
    tab.get_by_test_id("qk-head").fill("2")
    tab.get_by_test_id("qk-look").click()
    tab.get_by_test_id("qk-heat").wait_for()
    by_position = tab.get_by_test_id("qk-heat").locator("tbody tr").count()
    tab.get_by_text("by node").click()
    expect(tab.get_by_test_id("qk-heat").locator("tbody tr")).not_to_have_count(by_position)
    assert tab.get_by_test_id("qk-pairs").locator("tr").count() == 1


def test_figures_are_drawn(page, live):
    tab = page(live, "#pane=circuit&sheet=figures")
    for name, kind in {"ledger": "waterfall", "paths": "sankey", "scores": "bar"}.items():
        box = tab.get_by_test_id(f"figure-{name}")
        box.locator(".main-svg").first.wait_for(timeout=60_000)
        assert set(box.evaluate("box => box._fullData.map((trace) => trace.type)")) == {kind}


def test_neuronpedias_json_carries_the_pins(page, live, things):
    a, b, *_ = chosen(things)
    tab = page(live, f"#pane=circuit&pins={a}&groups=g:{b}")
    with tab.expect_download() as download:
        tab.get_by_test_id("neuronpedia").click()
    document = json.loads(download.value.path().read_text())
    ids = [node["node_id"] for node in things.graphs["circuit"].to_neuronpedia()["nodes"]]
    assert set(document["qParams"]["pinnedIds"]) == {ids[a], ids[b]}
    assert document["qParams"]["supernodes"] == [["g", ids[b]]]


def test_all_circuits_stand_in_one_table_that_leads_to_them(page, live):
    tab = page(live, "#pane=circuits")
    table = tab.get_by_test_id("circuits").last
    assert table.locator("tbody tr").count() == 2
    table.get_by_role("button", name="prompt").click()
    assert table.locator("thead [aria-sort=ascending]").count() == 1
    tab.get_by_test_id("recurring").last.locator("tbody a").first.click()
    tab.get_by_test_id("node-details").wait_for()
    assert "pane=circuit&" in tab.url + "&"


def test_every_sheet_is_readable_at_375_px(browser, live, things):
    a, b, *_ = chosen(things)
    context = browser.new_context(viewport={"width": 375, "height": 700}, color_scheme="dark")
    tab = context.new_page()
    sheets = [f"circuit&pins={a}.{b}&node={a}&sheet={sheet}" for sheet in ("paths", "heads", "qk", "figures")]
    for pane in [*sheets, "circuits"]:
        tab.goto("about:blank")
        tab.goto(f"{live}#pane={pane}")
        tab.wait_for_selector("body[data-ready=yes]", timeout=60_000)
        tab.wait_for_timeout(250)
        assert tab.evaluate("document.documentElement.scrollWidth") <= 375, pane
    context.close()
