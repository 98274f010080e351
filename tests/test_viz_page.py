"""The page is one file that needs nothing else, and no string in it can leave its place."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser

import fakes
import pytest
from unweave.saes import UserError
from unweave.viz import show, write_page
from unweave.viz.answers import answer, frozen
from unweave.viz.bundle import assets, bundle, static
from unweave.viz.display import Embedded
from unweave.viz.page import escaped_json, page_html
from unweave.viz.things import open_things


class Reader(HTMLParser):
    """Collects every tag with its attributes, and the text of each script."""

    def __init__(self):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.scripts: list[tuple[dict, str]] = []
        self.inside: dict | None = None

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag == "script":
            self.inside = dict(attributes)
            self.scripts.append((self.inside, ""))

    def handle_endtag(self, tag):
        self.inside = None if tag == "script" else self.inside

    def handle_data(self, data):
        if self.inside is not None:
            self.scripts[-1] = (self.inside, self.scripts[-1][1] + data)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    return fakes.demo(tmp_path_factory.mktemp("demo"), hostile=True)


@pytest.fixture(scope="module")
def page(demo):
    reader = Reader()
    reader.html = page_html([demo])
    reader.feed(reader.html)
    return reader


def test_the_page_loads_nothing(page):
    for tag, attributes in page.tags:
        assert tag not in {"link", "img", "iframe", "object", "embed", "base"}
        assert not {"src", "href", "srcdoc"} & attributes.keys(), (tag, attributes)
    assert not re.search(r"url\(|@import", static("style.css"))


def test_the_page_has_the_servers_answers(page, demo):
    things = open_things([demo])
    data = {attributes["data-path"]: json.loads(text) for attributes, text in page.scripts if "data-path" in attributes}
    assert data.keys() == {path for path, _ in frozen(things)}
    for path in ("graphs/0", "runs/1", "stores/0/latents/5"):
        assert data[path] == json.loads(escaped_json(answer(things, path)))


def test_the_policy_names_exactly_the_scripts_of_the_page(page):
    (policy,) = [a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"]
    code = [text for attributes, text in page.scripts if "type" not in attributes]
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in code]
    assert re.findall(r"'sha256-([^']+)'", policy) == hashes
    assert "default-src 'none'" in policy
    assert "unsafe-eval" not in policy
    assert "script-src 'unsafe" not in policy


def test_hostile_strings_stay_inside_their_json(page):
    assert {tag for tag, _ in page.tags} == {"html", "head", "meta", "title", "style", "body", "header", "span", "svg", "path", "strong",
                                             "nav", "button", "main", "dialog", "noscript", "p", "script"}  # fmt: skip
    for attributes, text in page.scripts:
        if "data-path" in attributes:
            assert not set(text) & set("<>&\u2028\u2029")
            assert text.isascii()


@pytest.mark.parametrize("text", fakes.HOSTILE)
def test_escaped_json_gives_back_what_was_put_in(text):
    assert json.loads(escaped_json({text: [text]})) == {text: [text]}


def test_plotly_is_there_only_where_curves_are(tmp_path):
    store, graph = fakes.store(tmp_path / "features"), fakes.graph()
    path = write_page(tmp_path / "small.html", [store, graph], title="Two things")
    assert path.stat().st_size < 1_500_000
    assert "plotly.js v" not in path.read_text("utf-8")
    assert "plotly.js v" in page_html([fakes.demo(tmp_path / "demo")])


def test_two_hundred_cards_fit_in_ten_megabytes(tmp_path):
    folder = fakes.demo(tmp_path / "demo", latents=300)
    path = write_page(tmp_path / "page.html", [folder], cards=200)
    assert path.stat().st_size < 10_000_000
    assert path.read_text("utf-8").count('data-path="stores/') >= 200


def test_a_failed_write_leaves_the_old_page(tmp_path, monkeypatch):
    path = write_page(tmp_path / "page.html", [fakes.graph()])
    before = path.read_bytes()
    with pytest.raises(UserError):
        write_page(path, [fakes.graph()], cards=0)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_latents_of_the_circuit_have_cards(demo):
    things = open_things([demo])
    paths = dict(frozen(things, cards=40))
    circuit = paths["graphs/0"]
    assert circuit["stores"] == {"3": 1}
    latents = [node["index"] for node in circuit["nodes"].values() if node["kind"] == "latent" and "x" in node]
    assert any(f"stores/1/latents/{latent}" in paths for latent in latents)


def test_the_modules_bundle_in_the_order_of_their_imports():
    script = bundle("main.js")
    order = re.findall(r'^modules\["([\w.]+)"\] = ', script, re.MULTILINE)
    assert order[-1] == "main.js"
    assert order.index("state.js") < order.index("dom.js") < order.index("card.js") < order.index("latents.js")
    assert not re.search(r"^(import|export)\b", script, re.MULTILINE)
    assert "</script" not in script


def test_modules_keep_to_the_imports_that_the_bundler_understands():
    files = [path.name for path in next(iter(assets().values())).parents[1].rglob("*.*")]
    assert len(files) == len(set(files)), "a module is known by its file's name"
    understood = (
        r'import \{ [\w, ]+ \} from "\.{1,2}/([\w-]+/)?[\w-]+\.js";|export (async )?(function|const|class) \w+.*'
    )
    for name in (name for name in assets() if name.endswith(".js")):
        for line in (line for line in static(name).splitlines() if re.match(r"(import|export)\b", line)):
            assert re.fullmatch(understood, line), (name, line)
            assert not re.match(r"import .* as ", line), (name, line)


def test_the_front_end_never_makes_markup_of_strings():
    script = bundle("main.js")
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|https?://(?!www\.w3\.org/2000/svg)",
        script,
    )


def test_show_writes_a_page_of_everything(demo, tmp_path):
    path = show(demo, to=tmp_path / "page.html")
    assert path == tmp_path / "page.html"
    assert "Unweave demo" in path.read_text("utf-8")


def test_things_are_opened_by_kind(demo):
    opened = open_things(
        [
            demo / "circuit.graph",
            demo / "features" / "mlp-3",
            demo / "dictionaries" / "mlp-3",
            demo / "features" / "mlp-3",
        ]
    )
    assert list(opened.graphs) == ["circuit"]
    assert list(opened.stores) == ["mlp-3", "mlp-3 (2)"]
    assert len(opened.runs["mlp-3"].rows) == 60


def test_an_unfinished_demo_is_shown(tmp_path):
    fakes.store(tmp_path / "features" / "half")
    opened = open_things([tmp_path])
    assert list(opened.stores) == ["half"]
    page_html(opened)


def test_a_running_training_run_is_shown(tmp_path):
    rows = fakes.rows(3)
    (tmp_path / "metrics.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + '\n{"step": 4, "to')
    assert open_things([tmp_path]).runs[tmp_path.name].rows == rows
    (tmp_path / "metrics.jsonl").write_text('oops\n{"step": 1}\n')
    with pytest.raises(UserError, match="line 1"):
        open_things([tmp_path])


@pytest.mark.parametrize("thing", ["no-such-file", 3, None, {}, [1]])
def test_unknown_things_are_refused_with_a_remedy(thing, tmp_path):
    with pytest.raises(UserError, match=r"expected .*; .*; "):
        show(thing, to=tmp_path / "page.html")


def test_a_folder_or_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    for path in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(UserError, match="expected"):
            show(path, to=tmp_path / "page.html")
    with pytest.raises(UserError, match="nothing"):
        show(to=tmp_path / "page.html")


def test_in_a_notebook_the_page_is_framed_without_the_notebooks_origin():
    html = Embedded(open_things([fakes.graph(hostile=True)]))._repr_html_()
    reader = Reader()
    reader.feed(html)
    ((tag, attributes),) = reader.tags
    assert tag == "iframe"
    assert attributes["sandbox"] == "allow-scripts allow-forms allow-downloads"
    assert attributes["srcdoc"].startswith("<!doctype html>")
