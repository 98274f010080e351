"""SAEDashboard's side: `PYTHON dashboards_rival.py CASE OUT`, with the interpreter of an environment that has sae-dashboard 0.8.0.

Its own runner makes the data of 256 features with its defaults; position 0 is left out on both sides. The time of its forward
passes is measured inside the run and told apart. OUT.json has the times, OUT.safetensors the numbers that both define.
"""

from __future__ import annotations

import json
import os
import sys
import time
import warnings
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.append(str(Path(__file__).parent))
import torch
from dashboards_case import FEATURES, LAYER, TOP, read_case
from safetensors.torch import save_file
from trace_rival import renamed

SITE = f"blocks.{LAYER}.hook_resid_post"


def main(case_path: Path, out: Path) -> None:
    """Make the dashboards' data, measured."""
    from sae_dashboard.feature_data_generator import FeatureDataGenerator
    from sae_dashboard.sae_vis_data import SaeVisConfig
    from sae_dashboard.sae_vis_runner import SaeVisRunner

    warnings.simplefilter("ignore")
    loaded, weights, tokens = read_case(case_path)
    model, sae = boot(loaded), encoder(weights, loaded.case)
    forward = {"wall_s": 0.0, "cpu_s": 0.0}
    own = FeatureDataGenerator.get_model_acts

    def clocked(self: Any, *args: Any, **more: Any) -> Any:
        wall, cpu = time.perf_counter(), time.process_time()
        try:
            return own(self, *args, **more)
        finally:
            forward["wall_s"] += time.perf_counter() - wall
            forward["cpu_s"] += time.process_time() - cpu

    FeatureDataGenerator.get_model_acts = clocked
    config = SaeVisConfig(SITE, list(range(FEATURES)), ignore_positions=[0], device="cpu")
    model(tokens[:8])
    wall, cpu = time.perf_counter(), time.process_time()
    data = SaeVisRunner(config).run(sae, model, tokens)
    total = {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}
    out.with_suffix(".json").write_text(json.dumps({"total": total, "forward": forward, "latents": FEATURES}))
    save_file(numbers(data), out.with_suffix(".safetensors"))


def boot(loaded: Any) -> Any:
    """The case's model in transformer-lens 2."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    case = loaded.case
    config = HookedTransformerConfig(
        n_layers=case.layers, d_model=case.d, n_heads=case.heads, d_head=case.d // case.heads, d_mlp=case.mlp,
        d_vocab=case.vocab, n_ctx=case.context, act_fn="silu", gated_mlp=True, normalization_type="RMS", final_rms=True,
        eps=1e-6, positional_embedding_type="rotary", rotary_dim=case.d // case.heads, init_weights=False, device="cpu",
        model_name="llama-random", dtype=torch.float32,
    )  # fmt: skip
    model = HookedTransformer(config)
    named = {
        name.replace("old_mlp.", "").replace("old_unembed.", ""): value
        for name, value in renamed(loaded.model, case).items()
    }
    missing, unexpected = model.load_state_dict(named, strict=False)
    missing = [name for name in missing if name.split(".")[-1][:2] not in ("b_", "ma", "IG", "ro")]
    if missing or unexpected:
        raise SystemExit(f"expected every weight of the model; missing {missing}, unexpected {unexpected}")
    return model.eval()


def encoder(weights: dict[str, torch.Tensor], case: Any) -> Any:
    """The case's SAE as SAELens has it."""
    from sae_lens import TopKSAE, TopKSAEConfig
    from sae_lens.saes.sae import SAEMetadata

    about = SAEMetadata(hook_name=SITE, hook_layer=LAYER, model_name="llama-random", hook_head_index=None)
    sae = TopKSAE(
        TopKSAEConfig(
            d_in=case.d,
            d_sae=case.latents,
            k=case.k,
            apply_b_dec_to_input=True,
            rescale_acts_by_decoder_norm=True,
            metadata=about,
        )
    )
    own = {
        "W_enc": weights["W_enc"].T.contiguous(),
        "b_enc": weights["b_enc"],
        "W_dec": weights["W_dec"],
        "b_dec": weights["b_dec"],
    }
    sae.load_state_dict(own)
    return sae


def numbers(data: Any) -> dict[str, torch.Tensor]:
    """Of each feature: share of tokens on which it fires, its largest value, promoted tokens."""
    density, largest, top = [], [], []
    for feature in range(FEATURES):
        one = data.feature_data_dict[feature]
        activations = one.acts_histogram_data
        density.append(float(activations.title.split("DENSITY = ")[1].rstrip("%")) / 100)
        middles = activations.bar_values  # the middles of bins between the least and the largest value
        largest.append(middles[-1] + (middles[-1] - middles[0]) / (len(middles) - 1) / 2)
        top.append([int(token) for token in one.logits_table_data.top_token_ids[:TOP]])
    return {"density": torch.tensor(density), "largest": torch.tensor(largest), "top": torch.tensor(top)}


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
