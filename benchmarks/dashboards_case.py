"""What both makers of dashboards are given: the model of trace_case.py, one TopK SAE in its middle, and random tokens.

The decoder's rows have norm 1 and the final norm a gain of 1, since one library folds the norms into the encoder and leaves the
gain out of the logits: so both are asked for the same numbers. Needs no more than torch and safetensors.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from trace_case import Case, Loaded, load_case, make_case

LAYER, PROMPTS, CONTEXT, FEATURES = 2, 1024, 128, 256
TOP = 10  # promoted tokens that are compared


def write_case(path: Path, latents: int = 4096) -> None:
    """Four layers of 256 dimensions, an SAE with 40 of `latents` active."""
    make_case(Case(layers=4, latents=latents, prompt=8, nodes=8), path)


def read_case(path: Path) -> tuple[Loaded, dict[str, Tensor], Tensor]:
    """The model, the SAE's weights, and tokens `[prompt context]` that begin with the BOS token 0."""
    loaded = load_case(path)
    loaded.model["model.norm.weight"] = torch.ones_like(loaded.model["model.norm.weight"])
    sae = loaded.transcoders[LAYER]
    sae["W_dec"] = torch.nn.functional.normalize(sae["W_dec"], dim=1)
    tokens = torch.randint(1, loaded.case.vocab, (PROMPTS, CONTEXT), generator=torch.Generator().manual_seed(1))
    tokens[:, 0] = 0
    return loaded, sae, tokens
