"""One self-contained HTML file: the front end, its style, plotly where curves are drawn, and the frozen answers.

The page opens from `file://` and asks the network for nothing. Three things keep it harmless whatever the data holds:

* data lie in `<script type="application/json" data-path=…>` with `<`, `>`, `&` and every non-ASCII character escaped,
  so no string can end the element, and the front end puts strings into text nodes only;
* a Content-Security-Policy allows exactly the inline scripts whose SHA-256 stands in it; no eval, no connection, no frame;
* plotly's bundle runs under that policy (its only `eval` is in map traces); it writes style attributes, hence
  `style-src 'unsafe-inline'`. It is embedded only when there are curves: a page without them has 0.1 MB instead of 5 MB.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ..saes.io import atomic_path
from .answers import frozen
from .bundle import bundle, plotly_source, static, style
from .things import Things, open_things


def write_page(path: str | Path, things: Things | Sequence[Any], *, title: str | None = None, cards: int = 200) -> Path:
    """Write stores, graphs and runs as one HTML file, atomically; returns its path.

    `things`: Things, or a sequence of what `show` takes. At most `cards` feature cards over all stores: latents of the
    circuit first, then `store.interesting`.
    """
    path = Path(path)
    html = page_html(things, title=title, cards=cards)
    with atomic_path(path) as temporary:
        temporary.write_text(html, encoding="utf-8")
    return path


def page_html(
    things: Things | Sequence[Any], *, title: str | None = None, cards: int = 200, pane: str | None = None
) -> str:
    """The page of `write_page` as a string; it opens at `pane` (left out: `first_pane`) unless its address says otherwise."""
    opened = open_things([things] if isinstance(things, Things) else things, title=title)
    scripts = [plotly_source()] if opened.runs else []
    scripts.append(bundle("main.js"))
    data = "\n".join(
        f'<script type="application/json" data-path="{name}">{escaped_json(value)}</script>'
        for name, value in frozen(opened, cards, has_plotly=bool(opened.runs))
    )
    return _filled("page", policy(scripts), scripts, data, pane or first_pane(opened))


def first_pane(things: Things) -> str:
    """Where a page opens: at its own pane where one Diff or one audit is all there is, of which the overview would say little."""
    if things.stores or things.graphs or things.runs or things.numbers or len(things.diffs) + len(things.audits) != 1:
        return "overview"
    return "diff" if things.diffs else "audit"


def frame_html(pane: str = "overview") -> str:
    """The page of a notebook's widget: no data, which it asks for; plotly may be added by itself, whose hash the policy has."""
    script = bundle("main.js")
    return _filled("frame", policy([script, plotly_source()]), [script], "", pane)


def _filled(host: str, rules: str, scripts: Iterable[str], data: str, pane: str) -> str:
    return fill(
        static("index.html"),
        {
            "host": host,
            "pane": pane,
            "policy": f'<meta http-equiv="Content-Security-Policy" content="{rules}">',
            "style": f"<style>\n{style()}</style>",
            "data": data,
            "script": "\n".join(f"<script>{script}</script>" for script in scripts),
        },
    )


def fill(template: str, parts: dict[str, str]) -> str:
    """Replace each `<!-- name -->`; one pass, so that no part is searched for another's mark."""
    return re.sub(r"<!-- (\w+) -->", lambda match: parts[match[1]], template)


def policy(scripts: Iterable[str]) -> str:
    """The Content-Security-Policy under which exactly these inline scripts run."""
    hashes = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" for script in scripts
    )
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


def escaped_json(value: Any) -> str:
    """JSON that may stand inside any HTML element: ASCII only (U+2028 and lone surrogates too), no `<`, `>` or `&`."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
