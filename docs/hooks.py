"""What the documentation site has beside the pages of docs/: the README and its like, and the notebooks as they ran.

`make docs` runs each of examples/ into build/notebooks/NAME.ipynb; here it becomes the page examples/NAME. Code and text go through
Markdown like any page. What a cell answered does not: it stands in for a mark that is replaced afterwards, since the drawings are
whole pages of HTML in sandboxed frames. Nothing on the site is fetched from elsewhere: plotly's code is copied from the package.
"""

from __future__ import annotations

import html
import json
import posixpath
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ROOT / "build" / "notebooks"
PLOTLY = "assets/plotly.js"
# Pages that stand elsewhere in the repository, and where they are on the site.
ELSEWHERE = {
    "README.md": "readme.md",
    "kernels/README.md": "kernels.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "saes/data/SOURCES.md": "sources.md",
}
LINK = re.compile(r"(?<!!)\[((?:[^\[\]]|\[[^\[\]]*\])*)\]\((?!https?:|#)([^)\s]+)\)")
COLOURS = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
MARK = "<p>(output {})</p>"

_outputs: dict[str, list[str]] = {}


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are not in docs/, and plotly's code."""
    _outputs.clear()
    for source, page in ELSEWHERE.items():
        text = with_links(source, (ROOT / source).read_text("utf-8"))
        files.append(File.generated(config, page, content=text))
    for path in sorted((ROOT / "examples").glob("*.py")):
        ran = NOTEBOOKS / f"{path.stem}.ipynb"
        if not ran.exists():
            raise SystemExit(f"expected {path.name} to have been run into {ran}; got nothing; run `make docs`")
        page = f"examples/{path.stem}.md"
        text, _outputs[page] = as_page(json.loads(ran.read_text("utf-8")), path.name)
        files.append(File.generated(config, page, content=text))
    from plotly.offline import get_plotlyjs

    files.append(File.generated(config, PLOTLY, content=get_plotlyjs()))
    return files


def on_page_content(content: str, page: Page, config: Any, files: Files) -> str:
    """Put the outputs in place of their marks."""
    for number, output in enumerate(_outputs.get(page.file.src_uri, ())):
        mark = MARK.format(number)
        if content.count(mark) != 1:
            raise SystemExit(
                f"expected the mark of output {number} once in {page.file.src_uri}; got {content.count(mark)}"
            )
        content = content.replace(mark, output)
    return content


def with_links(source: str, text: str) -> str:
    """Links that work on the site; what has no page there keeps its words."""

    def moved(match: re.Match[str]) -> str:
        words, target = match.groups()
        path, _, anchor = target.partition("#")
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
        page = ELSEWHERE.get(path)
        if path.startswith("docs/") and path.endswith(".md"):
            page = path.removeprefix("docs/")
        elif path.startswith("examples/") and path.endswith(".py"):
            page = f"{path.removesuffix('.py')}.md"
        return f"[{words}]({page}{'#' if anchor else ''}{anchor})" if page else words

    return LINK.sub(moved, text)


def as_page(notebook: dict[str, Any], name: str) -> tuple[str, list[str]]:
    """A notebook as Markdown with a mark where a cell answered, and the answers as HTML."""
    parts, outputs = [], []
    for cell in notebook["cells"]:
        source = "".join(cell["source"]).strip()
        if cell["cell_type"] == "markdown":
            parts.append(source)
        elif source:
            parts.append(f"````python\n{source}\n````")
            for shown in (as_html(output) for output in joined(cell["outputs"])):
                if shown:
                    parts.append(f"(output {len(outputs)})")
                    outputs.append(f'<div class="output">{shown}</div>')
    title, *rest = parts
    return "\n\n".join([title, f"*`examples/{name}` as it ran on a CPU.*", *rest]), outputs


def joined(outputs: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The outputs, with what was printed one after another in one piece: kernels send it as it comes."""
    printed = ""
    for output in [*outputs, {"output_type": "end"}]:
        if output["output_type"] == "stream":
            printed += "".join(output["text"]) if output["name"] == "stdout" else ""
            continue
        if printed:
            yield {"output_type": "stream", "text": printed}
            printed = ""
        if output["output_type"] != "end":
            yield output


def as_html(output: dict[str, Any]) -> str:
    """What a notebook would show of one output."""
    if output["output_type"] == "error":
        raise SystemExit(f"expected the examples to run; got {output['ename']}: {output['evalue']}")
    if output["output_type"] == "stream":
        return _text(output["text"])
    data = output["data"]
    if "application/vnd.plotly.v1+json" in data:
        return _figure(data["application/vnd.plotly.v1+json"])
    return "".join(data["text/html"]) if "text/html" in data else _text(data.get("text/plain", ""))


def _text(text: str | list[str]) -> str:
    words = html.escape(COLOURS.sub("", "".join(text)).rstrip(), quote=False)
    return f"<pre>{words}</pre>" if words else ""


def _figure(figure: dict[str, Any]) -> str:
    from plotly.io import from_json, to_html

    about = {"data": figure["data"], "layout": figure["layout"]}
    drawn = to_html(
        from_json(json.dumps(about), skip_invalid=True), include_plotlyjs=False, include_mathjax=False, full_html=False
    )
    return f'<script src="../../{PLOTLY}"></script>{drawn}'


if __name__ == "__main__":
    sys.exit("a hook of mkdocs; run `make docs`")
