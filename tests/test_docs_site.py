"""The documentation site: builds without a warning, shows the notebooks as they ran, and fetches nothing from elsewhere."""

import json
import re
from pathlib import Path

import pytest

pytest.importorskip("mkdocs")
pytest.importorskip("material")

from mkdocs.commands.build import build
from mkdocs.config import load_config

ROOT = Path(__file__).resolve().parent.parent
HOSTILE = "<script>window.bad = 1</script> \x1b[31mred\x1b[0m &amp; {{ x }} [link](javascript:bad)"
FRAME = '<iframe srcdoc="&lt;p&gt;a page&lt;/p&gt;" sandbox="allow-scripts"></iframe>'
FETCHED = re.compile(
    r"""<(?:script|img|iframe|source)\b[^>]*\bsrc=["']?(?:https?:)?//[^>]*>|<link\b[^>]*\brel=["']?(?:stylesheet|preload|icon|preconnect)[^>]*"""
    r"""\bhref=["']?(?:https?:)?//[^>]*>|@import\s+(?:url\()?["']?(?:https?:)?//|url\(["']?(?:https?:)?//"""
)


def stream(name: str, text: str) -> dict:
    return {"output_type": "stream", "name": name, "text": [text]}


def shown(**data: object) -> dict:
    return {"output_type": "execute_result", "data": data, "metadata": {}, "execution_count": 1}


def notebook(title: str) -> dict:
    figure = {"data": [{"type": "bar", "y": [1, 2]}], "layout": {"title": {"text": "bars"}}}
    outputs = [
        stream("stdout", HOSTILE),
        stream("stderr", "a warning that nobody needs"),
        shown(**{"text/plain": ["Graph(…)"], "text/html": [FRAME]}),
        shown(**{"application/vnd.plotly.v1+json": figure, "text/plain": ["Figure"]}),
        shown(**{"text/plain": ["'no <b>markup</b>'"]}),
    ]
    cells = [
        {"cell_type": "markdown", "source": [f"# {title}\n", "\n", "Words."]},
        {"cell_type": "code", "source": ["x = 1  # <b>\n", "print('```')"], "outputs": outputs},
    ]
    return {"cells": cells}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("docs")
    config = load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder / "site"))
    for hook in config["hooks"].values():
        hook.NOTEBOOKS = folder
    for path in (ROOT / "examples").glob("*.py"):
        (folder / f"{path.stem}.ipynb").write_text(json.dumps(notebook(f"About {path.stem}?")), "utf-8")
    config.plugins.on_startup(command="build", dirty=False)
    build(config)  # strict: a warning is an error
    return folder / "site"


def test_every_example_is_a_page_that_shows_what_its_cells_answered(site):
    for path in (ROOT / "examples").glob("*.py"):
        text = (site / "examples" / path.stem / "index.html").read_text("utf-8")
        assert f"About {path.stem}?" in text
        assert FRAME in text and "a warning that nobody needs" not in text
        assert "Plotly.newPlot" in text and '<script src="../../assets/plotly.js">' in text
        assert "<script>window.bad" not in text and "&lt;script&gt;window.bad = 1&lt;/script&gt; red &amp;amp;" in text
        assert "'no &lt;b&gt;markup&lt;/b&gt;'" in text and "(output " not in text
    assert (site / "assets" / "plotly.js").stat().st_size > 1_000_000


def test_the_readme_and_its_links_are_on_the_site(site):
    text = (site / "readme" / "index.html").read_text("utf-8")
    for target in ("../circuits/", "../kernels/", "../examples/why_paris/", "../browser/"):
        assert f'href="{target}"' in text, target


def test_nothing_is_fetched_from_elsewhere(site):
    for path in [*site.rglob("*.html"), *site.rglob("*.css")]:
        assert not [found.group()[:200] for found in FETCHED.finditer(path.read_text("utf-8"))], path


def test_what_is_fetched_is_seen():
    for bad in (
        '<script defer src="https://x.org/a.js"></script>',
        "<link rel=stylesheet href=//x.org/a.css>",
        "@import 'https://x.org'",
    ):
        assert FETCHED.search(bad)
    assert not FETCHED.search('<a href="https://x.org">')
