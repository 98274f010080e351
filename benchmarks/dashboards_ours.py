"""Our side: `python dashboards_ours.py CASE OUT` caches activations, then collects every latent from them.

OUT.json has the times: `cache` (the forward passes and the writing), `total` (the collecting, from the cached activations), OUT.safetensors
the numbers that both define, of the first 256 latents.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")
sys.path.append(str(Path(__file__).parent))

import torch
from dashboards_case import FEATURES, LAYER, TOP, read_case
from safetensors.torch import save_file
from trace_meter import clock
from trace_ours import boot
from unweave import saes


def main(case_path: Path, out: Path) -> None:
    """Cache and collect, measured."""
    loaded, weights, tokens = read_case(case_path)
    model, site = boot(loaded), f"blocks.{LAYER}.hook_resid_post"
    case = loaded.case
    config = saes.DictionaryConfig(site=(site,), latents=case.latents, k=case.k)
    dictionary = saes.Dictionary(config, weights, {"unweave": {}, "keep": {"drop_positions": 1}})
    model(tokens[:8])
    with tempfile.TemporaryDirectory() as folder:
        activations, features = Path(folder) / "activations", Path(folder) / "features"

        def cache() -> None:
            saes.cache(
                model, list(tokens), [site], activations, tokens=tokens.numel(), dtype=torch.float32, progress=False
            )

        def collect() -> None:
            saes.collect(dictionary, saes.Shards.open(activations), features, model, progress=False)

        times = {"cache": clock(cache), "total": clock(collect), "latents": case.latents}
        store = saes.FeatureStore.open(features)
        size = sum(path.stat().st_size for path in features.iterdir())
        times |= {"store_bytes": size, "features_bytes": (features / "features.safetensors").stat().st_size}
        numbers = first_latents(store)
    out.with_suffix(".json").write_text(json.dumps(times))
    save_file(numbers, out.with_suffix(".safetensors"))


def first_latents(store: saes.FeatureStore) -> dict[str, torch.Tensor]:
    """The numbers of the first 256 latents that the other library has too."""
    token_id = {token: place for place, token in enumerate(store.vocabulary)}
    top = [[token_id[token] for token, _ in store[latent].top_logits[:TOP]] for latent in range(FEATURES)]
    columns = {"density": store.density[:FEATURES].clone(), "largest": store.max_value[:FEATURES].clone()}
    return columns | {"top": torch.tensor(top)}


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
