"""Every noun draws itself in a notebook, hostile strings stay text, and broken data are told instead of raised."""

from html.parser import HTMLParser
from importlib.metadata import entry_points

import fakes
import pytest
import torch
from unweave.saes import Codes, Dictionary, DictionaryConfig, FeatureTable, TrainConfig
from unweave.saes.drawn import GROUP, drawn
from unweave.saes.latents.features import Firing
from unweave.viz import drawings

WEIGHTS = {"W_enc": torch.rand(32, 8), "W_dec": torch.rand(32, 8), "b_enc": torch.zeros(32), "b_dec": torch.zeros(8)}
SAFE = {"table", "caption", "b", "tbody", "tr", "th", "td", "ol", "li", "span", "pre", "iframe"}


class Tags(HTMLParser):
    def __init__(self, html):
        super().__init__()
        self.found, self.text = [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text.append(data)


def test_every_drawing_is_there():
    found = {entry.name: entry.load() for entry in entry_points(group=GROUP)}
    assert {"Codes", "Dictionary", "Feature", "FeatureStore", "Graph", "Shards", "TrainConfig"} <= found.keys()
    assert all(callable(draw) for draw in found.values())


@pytest.mark.parametrize(
    ("thing", "words"),
    [
        (TrainConfig(tokens=1234), ("tokens", "1234", "dictionary.latents")),
        (DictionaryConfig(latents=77), ("latents", "77")),
        (Codes(torch.rand(5, 3), torch.zeros(5, 3, dtype=torch.int64)), ("slots a token", "3")),
        (Dictionary(DictionaryConfig(latents=32, k=4), WEIGHTS), ("latents", "32 of 8 dimensions")),
        (FeatureTable([Firing(0, fakes.HOSTILE[0], 7, 1.5, True)]), ("7: 1.5", fakes.HOSTILE[0])),
    ],
    ids=lambda thing: type(thing).__name__,
)
def test_a_table_says_what_it_is(thing, words):
    tags = Tags(thing._repr_html_())
    text = " ".join(tags.text)
    assert all(word in text for word in words)
    assert {tag for tag, _ in tags.found} <= SAFE


def test_a_graph_and_a_store_are_pages_in_a_frame(tmp_path):
    for thing, pane in ((fakes.graph(hostile=True), "circuit"), (fakes.store(tmp_path, hostile=True), "latents")):
        ((tag, attributes),) = Tags(thing._repr_html_()).found
        assert tag == "iframe"
        assert attributes["sandbox"] == "allow-scripts allow-forms allow-downloads"
        assert f'data-pane="{pane}"' in attributes["srcdoc"]
        assert len(thing._repr_html_()) < 1_500_000


def test_a_feature_is_a_card_and_its_tokens_are_text(tmp_path):
    tags = Tags(drawn(fakes.store(tmp_path, hostile=True)[5]))
    assert {tag for tag, _ in tags.found} <= SAFE
    assert sum(tag == "li" for tag, _ in tags.found) == drawings.EXAMPLES
    assert all(not name.startswith("on") for _, attributes in tags.found for name in attributes)


class Broken:
    def __repr__(self):
        raise RuntimeError("<b>no</b>")


def test_what_cannot_be_drawn_is_told(monkeypatch):
    assert "whose repr failed: RuntimeError: &lt;b&gt;no" in drawn(Broken())

    def fail(thing):
        raise ValueError("damaged <i>")

    monkeypatch.setattr(drawings, "codes", fail)
    html = drawn(Codes(torch.rand(5, 3), torch.zeros(5, 3, dtype=torch.int64)))
    assert "not drawn: ValueError: damaged &lt;i&gt;" in html
    assert "Codes(" in html


def test_a_store_whose_files_are_gone_says_so(tmp_path):
    store = fakes.store(tmp_path / "features")
    graph = fakes.graph()
    graph.metadata["token_strings"] = 7  # from a damaged file
    for thing in (store, graph):
        assert isinstance(thing._repr_html_(), str)
