"""How each noun looks in a notebook (saes/drawn.py finds these by the entry points of setup.cfg).

A Graph and a FeatureStore are their own pages, in a sandboxed frame; a Feature is a card; Shards, Dictionaries, Codes and configs
are summary tables. Everything that came from data is escaped here, and stands in the saved notebook as it is.
"""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Iterable
from typing import Any

from ..circuits import Graph
from ..saes import Codes, Dictionary, Feature, FeatureStore, Shards
from ..saes.latents.features import FeatureTable
from .display import Embedded
from .text import number, readable, visible
from .things import Things

CARDS = 12  # feature cards in a store's drawing
EXAMPLES = 5  # top examples in a feature's drawing
HEAT = "background: rgba(240, 145, 58, {:.2f}); border-radius: 3px"


def graph(thing: Graph) -> str:
    """The circuit page."""
    return Embedded(Things(title="Circuit", graphs={"circuit": thing}), height=640, pane="circuit").html()


def feature_store(thing: FeatureStore) -> str:
    """The list and the cards of latents that are worth a first look."""
    things = Things(title=readable(thing.folder.name), stores={thing.folder.name: thing})
    return Embedded(things, height=640, cards=CARDS, pane="latents").html()


def shards(thing: Shards) -> str:
    """Sites, rows, model, text."""
    manifest = thing.manifest
    sites = "; ".join(f"{site['name']} [{site['width']}]" for site in manifest["sites"])
    size = sum(int(entry.get("bytes", 0)) for entry in manifest["shards"])
    return table(
        "Shards",
        {
            "folder": thing.folder,
            "model": manifest["model"].get("name"),
            "sites": sites,
            "rows": f"{len(thing):,}",
            "stored as": manifest.get("dtype"),
            "size": f"{size / 2**20:,.1f} MiB in {len(manifest['shards'])} files",
            "finished": "yes" if manifest.get("finished") else "NO: resume it",
            "fingerprint": manifest.get("fingerprint"),
        },
    )


def dictionary(thing: Dictionary) -> str:
    """What it reads and writes, its size, how it was trained."""
    config, known = thing.config, thing.metadata
    about = {
        "reads": ", ".join(config.site) or "activations",
        "writes": ", ".join(config.sites_out) or "what it reads",
        "latents": f"{config.latents:,} of {thing.d_in} dimensions",
        "activation": ", ".join(_rule(config)),
        "model": (known.get("model") or {}).get("name"),
        "rows": known.get("rows"),
        "fingerprint": thing.fingerprint,
    }
    return table("Dictionary", {name: value for name, value in about.items() if value is not None})


def _rule(config: Any) -> Iterable[str]:
    """The activation rule in words."""
    yield f"{config.activation}, {config.k} a token"
    if len(config.site) > 1:
        yield config.across
    if config.matryoshka:
        yield f"prefixes of {', '.join(map(str, config.matryoshka))}"
    if config.skip:
        yield "skip path"


def codes(thing: Codes) -> str:
    """Size and sparsity."""
    tokens, width = thing.values.shape
    active = thing.l0().float()
    return table(
        "Codes",
        {
            "tokens": f"{tokens:,}",
            "slots a token": width,
            "active a token": f"{float(active.mean()):.1f}" if tokens else "–",
            "largest": number(float(thing.values.max())) if thing.values.numel() else "–",
            "type": f"{thing.values.dtype} on {thing.values.device}".replace("torch.", ""),
        },
    )


def config(thing: Any) -> str:
    """A config's fields, nested ones with dotted names."""
    return table(type(thing).__name__, dict(_fields(thing)))


def _fields(thing: Any, prefix: str = "") -> Iterable[tuple[str, Any]]:
    for field in dataclasses.fields(thing):
        value = getattr(thing, field.name)
        if dataclasses.is_dataclass(value):
            yield from _fields(value, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, value


def feature(thing: Feature) -> str:
    """A card: numbers, what it promotes, where it fires most."""
    label = f": {readable(thing.label)}" if thing.label else ""
    promoted = ", ".join(visible(token) for token, _ in thing.top_logits[:8])
    numbers = {
        "density": number(thing.density, 3),
        "fires on": f"{thing.count:,} tokens",
        "largest value": number(thing.max_value, 3),
        **({"promotes": promoted} if promoted else {}),
    }
    examples = "".join(f"<li>{_example(example)}</li>" for example in thing.examples[:EXAMPLES])
    return table(f"Latent {thing.latent}{label}", numbers) + f"<ol>{examples}</ol>"


def _example(example: Any) -> str:
    most = max([*example.values, 1e-9])
    return "".join(
        f'<span title="{number(value, 3)}" style="{HEAT.format(0.1 + 0.7 * value / most) if value > 0 else ""}">'
        f"{html.escape(readable(token))}</span>"
        for token, value in zip(example.tokens, example.values, strict=True)
    )


def feature_table(thing: FeatureTable) -> str:
    """A row for each token: the latents that fire on it, with their values."""
    rows = {}
    for row in thing:
        rows.setdefault((row.position, row.token), []).append(f"{row.latent}: {row.value:.3g}")
    return table("Features", {f"{place} {visible(token)}": ", ".join(found) for (place, token), found in rows.items()})


def table(title: str, rows: dict[str, Any]) -> str:
    """Names and values."""
    cells = "".join(
        f'<tr><th style="text-align: left; font-weight: 400; opacity: .7">{html.escape(readable(name))}</th>'
        f'<td style="text-align: left">{html.escape(readable(value, 400))}</td></tr>'
        for name, value in rows.items()
    )
    return f"<table><caption style='text-align: left'><b>{html.escape(readable(title))}</b></caption><tbody>{cells}</tbody></table>"
