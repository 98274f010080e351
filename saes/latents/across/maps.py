"""Decoder directions in two dimensions: which latents point nearly the same way, as a map to look at.

    method "umap"   1. the `neighbours` - 1 nearest other rows of each decoder row by cosine, exact, in bounded memory;
                    2. PCA of the unit rows to two dimensions, as the place to start from;
                    3. UMAP's layout of the graph of (1) from (2) (McInnes, Healy & Melville 2018, arXiv 1802.03426)
    method "pca"    step 2 alone

Distances on a UMAP are not cosines: near neighbours are kept, distances between far groups and the density of a group mean
little. A layout is a function of the weights, the settings, the seed and the thread count (the dot products of step 1).
It is kept in the store's folder as `map.safetensors`: one tensor `xy [latent 2]` and, in the header, how it was made.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ....kernels import select_topk
from ...dictionary import Dictionary
from ...errors import UserError
from ...io import write_tensors
from ..shelf.store import FeatureStore

FORMAT, FILE = "unweave.map", "map.safetensors"
BLOCK = 2**26  # products of two rows that are in memory at once
Tell = Callable[[str, float], None]


class Layout(NamedTuple):
    """A place on the map for each latent, and how it was found: `method` ("umap" or "pca") and its settings."""

    xy: Float[Tensor, "latent 2"]
    method: str
    settings: dict[str, Any]


def quiet(stage: str, share: float) -> None:
    """Tell nobody how far the work is."""


@torch.no_grad()
def map_layout(
    dictionary: Dictionary,
    method: str = "umap",
    *,
    seed: int = 0,
    neighbours: int = 15,
    min_dist: float = 0.1,
    tell: Tell = quiet,
) -> Layout:
    """Lay the decoder rows out in two dimensions.

    `neighbours` counts the row itself, as umap-learn does; fewer latents than that, use all. Where umap-learn is not
    installed the method is PCA, and `settings["instead_of"]` says so. `tell(stage, share done)` hears of progress.
    Raises UserError for an unknown method, settings out of range, or weights that are not finite.
    """
    if method not in ("umap", "pca"):
        raise UserError(f"expected the method umap or pca; got {method!r}; give one of these")
    if neighbours < 2 or not 0 <= min_dist <= 1:
        raise UserError(
            f"expected neighbours of at least 2 and min_dist in [0, 1]; got {neighbours} and {min_dist}; change them"
        )
    unit = unit_rows(dictionary.W_dec)
    settings: dict[str, Any] = {"metric": "cosine"}
    wanted, enough = method, len(unit) > 3
    if method == "umap" and not (enough and has_umap()):
        settings |= {"instead_of": "umap", "because": "umap-learn is not installed" if enough else "too few latents"}
        method = "pca"
    start, variance = principal_plane(unit)
    if method == "pca":
        return Layout(start, "pca", settings | {"variance": round(variance, 6)})
    near, distance = nearest(unit, min(neighbours, len(unit)), tell)
    threads = torch.get_num_threads()
    xy = _umap(unit, near, distance, start, seed, min_dist, tell)
    settings |= {"neighbours": near.shape[1], "min_dist": min_dist, "seed": seed, "init": "pca"}
    return Layout(xy, wanted, settings | {"umap_learn": version("umap-learn"), "threads": threads})


def has_umap() -> bool:
    """Whether umap-learn is installed."""
    return find_spec("umap") is not None


def unit_rows(W_dec: Float[Tensor, "latent d"]) -> Float[Tensor, "latent d"]:
    """Decoder rows of length 1 in float32; a row of zeros stays one. UserError for weights that are not finite."""
    rows = W_dec.detach().float()
    if not bool(rows.isfinite().all()):
        raise UserError("expected finite decoder weights; got infinities or NaN; the dictionary is damaged")
    return torch.nn.functional.normalize(rows, dim=1)


def principal_plane(unit: Float[Tensor, "latent d"]) -> tuple[Float[Tensor, "latent 2"], float]:
    """Coordinates on the first two principal components and their share of the variance; the largest weight of each is positive."""
    centred = (unit - unit.mean(0)).double().cpu()
    values, vectors = torch.linalg.eigh(centred.T @ centred)
    axes = vectors.flip(1)[:, :2]
    strongest = axes.abs().argmax(0, keepdim=True)
    axes = axes * axes.gather(0, strongest).sign()
    xy = (centred @ axes).float()
    if xy.shape[1] < 2:  # a dictionary of one dimension
        xy = torch.nn.functional.pad(xy, (0, 1))
    return xy, float(values.flip(0)[:2].sum() / values.sum().clamp_min(1e-30))


def nearest(
    unit: Float[Tensor, "latent d"], count: int, tell: Tell = quiet
) -> tuple[Int[Tensor, "latent neighbour"], Float[Tensor, "latent neighbour"]]:
    """Each row itself and the `count` - 1 others with the largest cosine, nearest first, with 1 - cosine; exact."""
    piece, zero = max(BLOCK // len(unit), 1), unit.new_zeros(len(unit))
    indices, distances = [], []
    for begin in range(0, len(unit), piece):
        tell("neighbours", begin / len(unit))
        cosine, found = (part.cpu() for part in select_topk(unit[begin : begin + piece], unit, zero, count))
        own = torch.arange(begin, begin + len(found))[:, None]
        # Rows that are equal to it may stand before a row, or crowd it out: it goes first and the last goes.
        order = torch.where(found == own, 3.0, cosine)
        order[:, -1] = torch.where((found == own).any(1), order[:, -1], 3.0)
        found[:, -1] = torch.where((found == own).any(1), found[:, -1], own[:, 0])
        rank = order.argsort(dim=1, descending=True, stable=True)
        distance = (1 - cosine.gather(1, rank)).clamp_min(0)
        distance[:, 0] = 0
        indices.append(found.gather(1, rank))
        distances.append(distance)
    return torch.cat(indices), torch.cat(distances)


class _Epochs:
    """A file to which umap-learn's progress bar writes "done/all"."""

    def __init__(self, tell: Tell):
        self.tell = tell

    def write(self, text: str) -> None:
        done, _, total = text.strip().partition("/")
        if done.isdecimal() and total.isdecimal():
            self.tell("layout", int(done) / max(int(total), 1))

    def flush(self) -> None:
        """Nothing is held back."""


def _umap(
    unit: Tensor, near: Tensor, distance: Tensor, start: Tensor, seed: int, min_dist: float, tell: Tell
) -> Float[Tensor, "latent 2"]:
    tell("layout", 0.0)
    scale = 10 / start.abs().max().clamp_min(1e-12)
    with warnings.catch_warnings():
        # That its TensorFlow part is not there, that one seed means one thread, that such a map takes no new points.
        warnings.simplefilter("ignore")
        from umap import UMAP

        made: Any = UMAP  # its annotations say that `init` is a string
        found = made(
            n_neighbors=near.shape[1],
            min_dist=min_dist,
            init=(start * scale).numpy(),
            random_state=seed,
            n_jobs=1,
            force_approximation_algorithm=True,
            precomputed_knn=(near.numpy().astype(np.int32), distance.numpy().astype(np.float32)),
            tqdm_kwds={
                "disable": False,
                "file": _Epochs(tell),
                "bar_format": "{n_fmt}/{total_fmt}",
                "mininterval": 0.5,
            },
        ).fit_transform(unit.cpu().numpy())
    return torch.from_numpy(np.ascontiguousarray(found, dtype=np.float32))


def write_map(store: FeatureStore, layout: Layout, fingerprint: str) -> None:
    """Keep a layout in the store's folder; UserError unless it is of this store's dictionary, whose fingerprint is given."""
    if fingerprint != store.manifest["dictionary"]["fingerprint"] or len(layout.xy) != len(store):
        raise UserError(
            f"expected a map of the dictionary that {store.folder} was collected from; got one of another; lay that one out"
        )
    about = {"format": FORMAT, "version": "1", "method": layout.method, "dictionary": fingerprint}
    write_tensors(store.folder / FILE, {"xy": layout.xy}, about | {"settings": json.dumps(layout.settings)})


def read_map(store: FeatureStore) -> Layout | None:
    """The layout kept with a store, None where there is none; UserError if it is damaged or of another dictionary."""
    from safetensors import SafetensorError, safe_open

    path = store.folder / FILE
    if not path.exists():
        return None
    try:
        with safe_open(str(path), "pt") as file:
            about, xy = file.metadata() or {}, file.get_tensor("xy")
        settings = json.loads(about["settings"])
        is_whole = about["format"] == FORMAT and about["version"] == "1" and isinstance(settings, dict)
        is_whole &= xy.shape == (len(store), 2) and xy.dtype == torch.float32 and bool(xy.isfinite().all())
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise UserError(f"expected a map at {path}; could not read it ({error}); make it again") from error
    if not is_whole or about["dictionary"] != store.manifest["dictionary"]["fingerprint"]:
        raise UserError(f"expected a map of this store's dictionary at {path}; got something else; make it again")
    return Layout(xy, about["method"], settings)


def map_columns(store: FeatureStore) -> dict[str, Float[Tensor, "latent"]]:
    """The columns `map_x` and `map_y` of a store; empty where no map is kept with it."""
    layout = read_map(store)
    return {} if layout is None else {"map_x": layout.xy[:, 0], "map_y": layout.xy[:, 1]}
