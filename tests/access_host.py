"""A live host that can do everything, over hostile data with everything in them, and a list of every state of every pane."""

from pathlib import Path

import fake_audits
import fake_diffs
import fake_live
import fakes
import torch
from fake_live import TEXT
from saes_toys import cached, dictionary, model
from unweave.circuits import Graph, QKTable
from unweave.circuits.attention.qk import Pair
from unweave.saes import FeatureStore, collect
from unweave.saes.latents.across.maps import Layout, write_map
from unweave.viz.audits import read_audit
from unweave.viz.things import Things, open_things

AUDIT = (Path(__file__).parent / "access_audit.js").read_text("utf-8").split("\n(only) =>", 1)[1]
LISTEN = """window.__clicked = new Set();
const add = EventTarget.prototype.addEventListener;
EventTarget.prototype.addEventListener = function (type, ...rest) {
  if (type === "click" && this instanceof Element) window.__clicked.add(this);
  return add.call(this, type, ...rest);
};"""
ASKED = f"pane=prompt&store=1&prompt={TEXT.replace(' ', '%20')}"


class Host(fake_live.Fake):
    """A live host that can do everything, with a made-up model."""

    def abilities(self):
        return {
            "features",
            "fires",
            "steer",
            "generate",
            "effects",
            "validate",
            "qk",
            "view",
            "label",
            "history",
            "search",
            "map",
            "match",
        }

    def effects(self, body):
        examples = {}
        for row in body["rows"]:
            shown = len(self.store(body["store"]).example_at(body["latent"], row).tokens)
            examples[str(row)] = {
                "loss": [(place % 3 - 1) * 0.4 for place in range(shown)],
                "up": [[[fakes.HOSTILE[0], 1.5]]] * shown,
                "down": [[]] * shown,
            }
        return {"examples": examples, "note": "loss without it less loss with it, in nats"}

    def validate(self, place, nodes):
        size = [0.1 * (number + 1) for number in range(len(nodes))]
        alone = {"nodes": nodes, "predicted": size, "measured": [-one for one in size]}
        together = {"top_predicted": 1.0, "top_measured": 0.5, "control_measured": [0.1, 0.2]}
        return (
            alone
            | together
            | {
                "node_controls": [[0.01]] * len(nodes),
                "spearman": -1.0,
                "interval": [-1.0, 1.0],
                "warnings": [fakes.HOSTILE[0]],
            }
        )

    def qk(self, place, layer, head, query, key):
        nodes = self.graph(place).nodes[:24]
        factors = torch.randn(2, 24, 4, generator=torch.Generator().manual_seed(head), dtype=torch.float64)
        score = float(factors[0].sum(0) @ factors[1].sum(0))
        return QKTable(layer, head, query, key, score, 0.0, None, nodes, tuple(range(24)), (Pair(0, 1, 0.5),), *factors)


def compared(base: Path) -> list[FeatureStore]:
    """Two stores of one text, which can be matched by correlation."""
    shards = cached(base / "shards", count=20)
    found = []
    for place in range(2):
        own = dictionary(latents=24, seed=place, dtype=torch.float32)
        own.save(base / f"toy-{place}")
        found.append(collect(own, shards, base / f"store-{place}", model(), progress=False))
    return found


def everything(base: Path) -> Things:
    """Stores with and without codes, labels and maps; runs; circuits with and without heads; all of it hostile."""
    folder = fakes.demo(base / "demo", hostile=True)
    mapped = FeatureStore.open(folder / "features" / "embed-0")
    places = torch.arange(64)
    layout = Layout(
        torch.stack([places % 8, places // 8], 1).float(), "umap", {"metric": "cosine", "neighbours": 15, "seed": 0}
    )
    write_map(mapped, layout, "e" * 16)
    mapped.labels.set(
        5,
        label=fakes.HOSTILE[0],
        note=fakes.HOSTILE[1],
        tags=[fakes.HOSTILE[2][:40]],
        is_starred=True,
        score={"value": 0.8, "low": 0.7, "high": 0.9, "n": 40, "method": fakes.HOSTILE[1]},
    )
    opened = open_things([folder, fakes.store(base / "coded", 40, hostile=True, codes=True), *compared(base)])
    graph = fakes.graph(hostile=True, seed=1)
    heads = [{"target": graph.targets[0], "source": 70, "layer": 0, "heads": [1.0, -0.5], "bypass": 0.1}]
    opened.graphs["split"] = Graph(list(graph.nodes), graph.edges, graph.row_values, graph.metadata | {"heads": heads})
    opened.files = {"circuit": folder / "circuit.graph"}
    opened.diffs = {
        method: fake_diffs.diff(method, hostile=True, fingerprint="e" * 16) for method in ("crosscoder", "lens", "mean")
    }
    opened.audits = {"audit": read_audit(fake_audits.audit(base / "audit", hostile=True))}
    return opened


class Tab:
    """One tab: opens states, and remembers what the page should not have said."""

    def __init__(self, browser, address, **options):
        self.context = browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **options})
        self.page, self.address, self.wrong = self.context.new_page(), address, []
        self.page.add_init_script(LISTEN)
        self.page.on(
            "console", lambda said: self.wrong.append(said.text) if said.type in ("error", "warning") else None
        )
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.asking = set()
        self.page.on("request", lambda request: self.asking.add(request))
        for end in ("requestfinished", "requestfailed"):
            self.page.on(end, lambda request: self.asking.discard(request))
        self.press = self.page.keyboard.press

    def open(self, hash="", wait=None):
        self.page.goto("about:blank")
        self.page.goto(f"{self.address}#{hash}")
        self.page.wait_for_selector("body[data-ready=yes]", timeout=20_000)
        if wait:
            self.page.locator(wait).first.wait_for(timeout=20_000)
        return self

    def at(self, testid):
        return self.page.get_by_test_id(testid)

    def focused(self, what="dataset.testid"):
        return self.page.evaluate(f"() => document.activeElement.{what}")

    def audited(self):
        """What is wrong with the page as it stands, its colours in light and dark; a key is pressed before, so that the focus is shown."""
        self.page.wait_for_timeout(150)
        self.press("Tab")
        found = self.lasting(False)
        self.page.emulate_media(color_scheme="dark")
        found += [f"dark: {each}" for each in self.lasting(True)]
        self.page.emulate_media(color_scheme="light")
        return found

    def lasting(self, only):
        """What is still wrong when a busy machine has had time to draw its figures in other colours."""
        for _ in range(40):
            self.page.wait_for_timeout(100)
            if not (found := self.page.evaluate("(only) =>" + AUDIT, only)):
                break
        return found

    def close(self):
        assert self.page.evaluate("window.__pwned") is None
        assert not [
            text for text in self.wrong if "404" not in text
        ]  # the browser tells of it where a latent is asked for that is none
        self.context.close()


def written(tab):
    tab.at("run-edits").click()
    tab.at("steer-table").wait_for()
    tab.at("write").click()
    tab.page.get_by_test_id("generate-status").get_by_text("written", exact=True).wait_for()


def marked(tab):
    tab.at("effects").click()
    tab.page.locator(".t.helps").first.wait_for()
    tab.at("history").locator("summary").click()
    tab.press("n")


def validated(tab):
    tab.at("validate").click()
    tab.at("scatter").wait_for()
    tab.page.get_by_text("Numbers", exact=True).click()


def explained(tab):
    tab.at("qk-look").click()
    tab.at("qk-heat").wait_for()


def saving(tab):
    tab.page.locator(".exports > summary").first.click()


def unfolded(tab):
    for fold in tab.page.locator("#pane details:not(.exports) > summary").all():
        fold.click()


def helped(tab):
    tab.press("?")


# Every pane and what can be opened in it: the address, what to wait for, what to do then.
STATES = {
    "overview": ("", "[data-testid=graphs]", None),
    "list": (
        "pane=latents&store=2&query=fox&sort=-max_value&filter=alive;density:1e-4..",
        "[data-testid=latent-row]",
        saving,
    ),
    "card": ("pane=latents&latent=5", "[data-testid=examples] .t", marked),
    "intervals": ("pane=latents&store=2&latent=1&intervals=width&bins=width", "[data-testid=company] td", None),
    "no such latent": ("pane=latents&latent=9999", "[data-testid=empty]", helped),
    "no prompt": ("pane=prompt", "[data-testid=examples]", None),
    "prompt": (
        f"{ASKED}&latent=9&prompt_token=2&prompt_edits=9:steer:2:;11:ablate:1:3-4",
        "[data-testid=edit]",
        written,
    ),
    "circuit": ("pane=circuit&node=80", "[data-testid=incoming]", None),
    "pins": (
        "pane=circuit&graph=1&node=80&pins=80.81.90&groups=both:82.83&sheet=heads",
        "[data-testid=pinned-picture]",
        None,
    ),
    "scores": ("pane=circuit&sheet=qk", "[data-testid=qk-look]", explained),
    "experiment": ("pane=circuit&pins=80.81.90&sheet=validation", "[data-testid=validate]", validated),
    "figures": ("pane=circuit&sheet=figures", ".main-svg", None),
    "traced": ("pane=circuit&sheet=traced", "[data-testid=sheet] .facts", None),
    "circuits": ("pane=circuits", ".main-svg", None),
    "compare": (
        "pane=compare&store=3&compare_with=4&compare_by=correlation&latent=3",
        "[data-testid=pair-facts]",
        None,
    ),
    "no match": ("pane=compare", "[data-testid=compare-why]", None),
    "diff": ("pane=diff&diff_row=7&diff_filter=q:..0.9", "[data-testid=diff-facts]", unfolded),
    "lens": ("pane=diff&diff=1&diff_show=more&diff_sort=-q", "[data-testid=diff-row]", saving),
    "audit": ("pane=audit&audit_call=r2&audit_query=r", "[data-testid=audit-call] .untrusted", unfolded),
    "map": ("pane=map&latent=5", "[data-testid=map-box][data-drawn]", None),
    "no map": ("pane=map&store=1", "[data-testid=no-map]", None),
    "training": ("pane=training", ".main-svg", None),
}
