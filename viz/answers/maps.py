"""The map of a store: where its latents lie, if someone laid them out.

| path | answer |
|---|---|
| `stores/S/map` | `map`: {method, settings, file} or null; `why`: what is wrong with a map that is there |
| `stores/S/columns/map_x`, `…/map_y` | coordinates of all latents, float32 |
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...saes import FeatureStore
from ...saes.errors import UserError
from ...saes.latents.across.maps import FILE, has_umap, map_columns, read_map
from ..text import jsonable, number, readable
from .parts import store_at
from .registry import path

if TYPE_CHECKING:
    from ..things import Things


@path(r"stores/(\d{1,6})/map")
def about_map(things: Things, place: int) -> dict[str, Any]:
    """How the map of a store was made."""
    return map_payload(store_at(things, place))


def map_payload(store: FeatureStore) -> dict[str, Any]:
    """How the map was made, null where there is none; a map that cannot be used says why."""
    about: dict[str, Any] = {"map": None, "why": None, "umap": has_umap(), "latents": len(store)}
    try:
        layout = read_map(store)
    except UserError as error:
        return about | {"why": readable(error, 400)}
    if layout is None:
        return about
    return about | {
        "map": {"method": readable(layout.method), "settings": jsonable(dict(layout.settings)), "file": FILE}
    }


def has_map(store: FeatureStore) -> bool:
    """Whether a store has a map; one that cannot be used counts as none."""
    return map_payload(store)["map"] is not None


@path(r"stores/(\d{1,6})/columns/(map_[xy])")
def coordinate(things: Things, place: int, name: str) -> bytes:
    """One coordinate of all latents as little-endian float32; KeyError where there is no map."""
    return float_bytes(map_columns(store_at(things, place))[name])


def float_bytes(values: Tensor) -> bytes:
    """Numbers as little-endian float32."""
    plain = values.detach().to(torch.float32).contiguous().numpy()
    return (plain if sys.byteorder == "little" else plain.byteswap()).tobytes()


def frozen_map(things: Things, place: int, latents: Sequence[int]) -> Iterator[tuple[str, Any]]:
    """What a page carries of a store's map: the paths above for the latents that it carries; nothing without a map."""
    store = store_at(things, place)
    about = map_payload(store)
    if about["map"] is None:
        return
    yield f"stores/{place}/map", about
    for name, values in map_columns(store).items():
        chosen = values[torch.tensor(list(latents), dtype=torch.int64)]
        yield f"stores/{place}/columns/{name}", [number(value, 5) for value in chosen.tolist()]
