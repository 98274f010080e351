"""A FeatureStore of 131,072 latents, made of a small one again and again: for tests of speed and of long lists."""

import shutil
from pathlib import Path

import fakes
import torch
from unweave.saes import FeatureStore
from unweave.saes.io import map_tensors, write_json, write_tensors
from unweave.saes.latents.across.maps import Layout, write_map

MANY = 131_072


def tiled(folder: Path, latents: int = MANY, of: int = 1024) -> FeatureStore:
    """A store of many latents: one of `of`, again and again, densities and largest values spread so that they differ."""
    small = fakes.store(folder / "small", of)
    arrays, times = map_tensors(small.folder / "features.safetensors"), latents // of
    generator = torch.Generator().manual_seed(1)
    starts = arrays["window_starts"]
    several = {
        "window_starts": torch.cat([starts[:-1] + place * starts[-1] for place in range(times)] + [times * starts[-1:]])
    }
    for name, values in arrays.items():
        several.setdefault(name, values.repeat(times, *[1] * (values.ndim - 1)))
    for name in ("density", "max_value"):
        several[name] = several[name] * (1 + 0.5 * torch.rand(latents, generator=generator))
    write_tensors(folder / "many" / "features.safetensors", several)
    shutil.copy(small.folder / "tokens.safetensors", folder / "many")
    write_json(folder / "many" / "manifest.json", small.manifest)
    return FeatureStore.open(folder / "many")


def mapped(store: FeatureStore) -> FeatureStore:
    """The same with a map: points drawn at random."""
    places = torch.randn(len(store), 2, generator=torch.Generator().manual_seed(0))
    write_map(store, Layout(places, "umap", {"metric": "cosine", "neighbours": 15, "seed": 0}), "f" * 16)
    return store
