"""Everything that the browser shows, with nothing in it that means well: names, labels, notes, tags, tokens, titles,
metadata, links.

`hostile_things` are such stores, circuits and runs, `HOSTS` serve them as a server, as a saved page and as a notebook's frame,
`STATES` open every pane. The strings are those of fakes.HOSTILE, several of which would set `window.__pwned` if they ever ran.
"""

import base64
import contextlib
import itertools
import json
from pathlib import Path
from urllib.parse import quote

import access_host
import fake_audits
import fake_diffs
import fakes
import pytest
import torch
from fake_live import TEXT, serving
from unweave.circuits import Graph
from unweave.saes import FeatureStore
from unweave.saes.latents.across.maps import Layout, write_map
from unweave.viz import write_page
from unweave.viz.answers.views import save_view
from unweave.viz.audits import read_audit
from unweave.viz.text import visible
from unweave.viz.things import Run, Things

HOSTILE = fakes.HOSTILE
HUGE = 10**400  # a whole number that no float holds
FOLDER = "<img src=x onerror=window.__pwned=6>\u202egnp"  # what a file system can hold
TEXTS = [text for text in HOSTILE if text.strip()]
LABELS = [text[:500].strip() for text in TEXTS if text.isprintable() or text[0] in "\u202e\u2028\x00"]
GROUP = quote(quote(HOSTILE[1] + "\u202e"))  # a supernode's name as it stands in an address
LINKED = quote("\u202e<img src=x onerror=window.__pwned=7>")


def renamed(folder, **parts):
    """A store's manifest with hostile strings in it, opened anew."""
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | parts))
    return FeatureStore.open(folder)


def labelled(store):
    """A store with a label, a note, tags and a star on every third latent, each of another kind."""
    for latent, text in zip(itertools.count(3, 3), LABELS, strict=False):
        store.labels.set(latent, label=text, note=text * 3, tags=[text[:40], "</textarea>"], is_starred=True, author=text[:40],
                         score={"value": 0.8, "low": 0.7, "high": 0.9, "n": 40, "method": text[:60]})  # fmt: skip
    return store


def hostile_store(folder, **options):
    made = fakes.store(folder, 64, hostile=True, **options)
    model = {"name": HOSTILE[0], "n_layers": HUGE, HOSTILE[3]: HOSTILE[12]}
    return labelled(renamed(made.folder, model=model, text={"name": HOSTILE[8], HOSTILE[1]: TEXTS}))


def hostile_graph(seed):
    graph = fakes.graph(hostile=True, seed=seed)
    heads = [{"target": graph.targets[0], "source": 70, "layer": 0, "heads": [1.0, -0.5], "bypass": 0.1}]
    strings = [HOSTILE[(seed + place * 3) % len(HOSTILE)] for place in range(6)]
    more = {"heads": heads, "supernodes": [[HOSTILE[0], 80, 81]], "prompt": "".join(HOSTILE[:12]), "token_strings": strings,
            "model": {"name": HOSTILE[5], "n_layers": HUGE}, "settings": {HOSTILE[0]: HUGE, "title": HOSTILE[8]},
            "neuronpedia": {"title": HOSTILE[1], "slug": HOSTILE[3]},
            "validation": {"warnings": TEXTS, "spearman": HUGE, "interval": [HUGE, HOSTILE[0]]}}  # fmt: skip
    nodes = [one._replace(label=TEXTS[(place + seed) % len(TEXTS)]) for place, one in enumerate(graph.nodes)]
    return Graph(nodes, graph.edges, graph.row_values, graph.metadata | more)


def hostile_things(base):
    """Three stores (two of one text, one mapped), three circuits (one with a saved view), two Diffs, an audit, two runs."""
    mapped = hostile_store(base / FOLDER)
    places = torch.arange(64)
    grid = torch.stack([places % 8, places // 8], 1).float()
    write_map(mapped, Layout(grid, "umap", {"metric": HOSTILE[0], "neighbours": 15, "seed": 0}), "f" * 16)
    texts = (hostile_store(base / f"{FOLDER}{place}", codes=True, fingerprint=f"{place}" * 16) for place in (1, 2))
    stores = [*texts, mapped]
    graphs = [hostile_graph(seed) for seed in range(3)]
    file = base / f"{FOLDER}.graph"
    graphs[0].save(file)
    save_view(graphs[0], file, {"pins": [82], "groups": [[HOSTILE[8] + HOSTILE[0], 80, 81]]})
    diffs = [fake_diffs.diff(method, hostile=True, fingerprint="1" * 16) for method in ("crosscoder", "lens")]
    rows = [
        {**row, HOSTILE[0]: 1.0, "loss": HOSTILE[1], "fvu": HUGE, "tokens_per_s": -HUGE} for row in fakes.rows()[:3]
    ] + fakes.rows()
    about = {"config": {"text": HOSTILE[0], HOSTILE[3]: TEXTS, "site": [HOSTILE[8]]}, "metrics": {"fvu": HUGE, HOSTILE[1]: HOSTILE[12]},
             "cfg": {"architecture": HOSTILE[11]}}  # fmt: skip
    return Things(
        HOSTILE[1] + HOSTILE[8] + HOSTILE[12],
        dict(zip((HOSTILE[0] + "\u202e", HOSTILE[12], HOSTILE[15] + "\x00"), stores, strict=True)),
        dict(zip((HOSTILE[1], HOSTILE[12] + "g", HOSTILE[8]), graphs, strict=True)),
        {HOSTILE[3]: Run(rows, about), HOSTILE[12] + "\u2066": Run(rows, about)},
        {HOSTILE[11]: HOSTILE[8], HOSTILE[12]: TEXTS, "completion": HOSTILE[0], "loss": HUGE},
        {HOSTILE[1]: file},
        dict(zip((HOSTILE[0] + "\u202e", HOSTILE[12] + "d"), diffs, strict=True)),
        {HOSTILE[12] + HOSTILE[0]: read_audit(fake_audits.audit(base / f"{FOLDER}a", hostile=True))},
    )


class Host(access_host.Host):
    """A live host that answers every question with hostile words."""

    def fires(self, place, text):
        return {"latents": [3, 6], "total": 2, "why": visible(text)}


@contextlib.contextmanager
def server(things, folder):
    """The local server; the address, and what a tab needs before it goes there."""
    with serving(Host(things)) as address:
        yield address, lambda tab: None


@contextlib.contextmanager
def page(things, folder):
    """A saved page."""
    yield write_page(folder / "page.html", things, cards=24).as_uri(), lambda tab: None


@contextlib.contextmanager
def frame(things, folder):
    """A notebook's frame, whose questions the widget's own code answers."""
    pytest.importorskip("anywidget", reason="anywidget is missing: pip install anywidget")
    from test_viz_widget import HOST
    from unweave.viz import widget

    browser, sent = widget.Browser(things), []
    browser.live = Host(things)
    browser.send = lambda message, buffers=None: sent.append([message, list(buffers[0]) if buffers else None])

    def ask(message):
        sent.clear()
        if message.get("unweave") == "ask":
            browser._reply(message)
        return list(sent)

    relay = base64.b64encode((Path(widget.__file__).parent / "relay.js").read_bytes()).decode()
    (folder / "notebook.html").write_text(HOST, "utf-8")

    def prepare(tab):
        for name, answer in {"pyAsk": ask, "pyRelay": lambda: relay, "pyPage": lambda: browser.page}.items():
            tab.expose_function(name, answer)

    yield (folder / "notebook.html").as_uri(), prepare


HOSTS = {"server": server, "page": page, "frame": frame}
ASKED = f"pane=prompt&store=1&prompt={quote(TEXT + HOSTILE[0] + HOSTILE[8])}"

# Every pane and what can be opened in it: the address, and what is there once it is drawn.
STATES = {
    "overview": ("pane=overview", "[data-testid=graphs]"),
    "list": (f"pane=latents&store=1&query=img&sort=-max_value&filter=alive;density:1e-4..;tag:{LINKED}", "[data-testid=latent-count]"),
    "search": (f"pane=latents&store=2&query={LINKED}&find=fires", "[data-testid=latent-count]"),
    "card": ("pane=latents&store=2&latent=9", "[data-testid=examples] .t"),
    "intervals": ("pane=latents&store=1&latent=12&intervals=width&bins=width", "[data-testid=examples] .t"),
    "prompt": (f"{ASKED}&latent=9&prompt_token=2&prompt_edits=9:steer:2:;11:ablate:1:3-4", "[data-testid=prompt-token]"),
    "refused": (f"pane=prompt&store=1&prompt=wrong&prompt_target={LINKED}", "[data-testid=view-prompt]"),
    "circuit": ("pane=circuit&node=80", "[data-testid=incoming]"),
    "pins": (f"pane=circuit&graph=1&node=80&pins=80.81.90&groups={GROUP}:82.83&sheet=heads", "[data-testid=pinned-picture]"),
    "scores": ("pane=circuit&sheet=qk", "[data-testid=qk-look]"),
    "experiment": ("pane=circuit&pins=80.81.90&sheet=validation", "[data-testid=sheet]"),
    "figures": ("pane=circuit&sheet=figures", ".main-svg"),
    "traced": ("pane=circuit&sheet=traced", "[data-testid=sheet] .facts"),
    "circuits": ("pane=circuits", ".main-svg"),
    "compare": (f"pane=compare&store=0&compare_with=1&compare_by=correlation&latent=12&compare_text={LINKED}", "[data-testid=compare-row]"),
    "no match": ("pane=compare&store=0&compare_with=2", "[data-testid=compare-why]"),
    "diff": (f"pane=diff&diff_row=7&diff_query=img&diff_class={LINKED}&diff_filter=constructor:..;q:..x", "[data-testid=diff-facts]"),
    "lens": ("pane=diff&diff=1&diff_row=5&diff_sort=-__proto__", "[data-testid=diff-row]"),
    "audit": (f"pane=audit&audit_call=r2&audit_query=r&audit_show={LINKED}", "[data-testid=audit-call] .untrusted"),
    "map": (f"pane=map&store=2&latent=9&mapquery={LINKED}", "[data-testid=map-box][data-drawn]"),
    "no map": ("pane=map&store=0", "[data-testid=view-map]"),
    "training": ("pane=training&run=1", ".main-svg"),
}  # fmt: skip
# What a host lacks: a page has no model and compares its first two stores; a frame has the server's answers: one view of each pane will do.
LACKS = {"server": set(), "page": {"prompt", "refused", "scores", "no match"},
         "frame": {"intervals", "refused", "circuit", "scores", "experiment", "figures", "traced",
                   "no match", "lens", "no map"}}  # fmt: skip
