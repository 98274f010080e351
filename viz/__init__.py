"""Look at features and circuits: plotly figures, one self-contained page, a local browser.

`import unweave.viz` costs nothing: plotly, starlette and the rest are imported by the function that draws with them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .circuit import circuit_figure
    from .display import show
    from .figures import feature_figure, training_figure
    from .graph_figures import dashboard_figure, ledger_figure, paths_figure, scores_figure
    from .page import write_page
    from .server import serve

__all__ = [
    "circuit_figure",
    "dashboard_figure",
    "feature_figure",
    "ledger_figure",
    "paths_figure",
    "scores_figure",
    "serve",
    "show",
    "training_figure",
    "write_page",
]

_HOMES = {
    "circuit_figure": "circuit",
    "dashboard_figure": "graph_figures",
    "ledger_figure": "graph_figures",
    "paths_figure": "graph_figures",
    "scores_figure": "graph_figures",
    "feature_figure": "figures",
    "training_figure": "figures",
    "write_page": "page",
    "serve": "server",
    "show": "display",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
