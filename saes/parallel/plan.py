"""What a training by several ranks needs: bytes that each rank sends in a step, and bytes that it holds.

`traffic` is exact: a test counts what is sent. An all-reduce of b bytes over r ranks sends 2 (r - 1) / r b from each, a gathering
(r - 1) b (rings, which every library uses for large tensors). Sums of a few numbers and flags, a byte a latent, are left out.
`held` is what the tensors of training take; work space of libraries and the language model come on top.
"""

from __future__ import annotations

import math

from ..config import TrainConfig
from ..layout import Layout
from ..losses import aux_width


def traffic(config: TrainConfig, layout: Layout, data: int, latent: int, element: int = 4) -> dict[str, int]:
    """Bytes that one of `data` x `latent` ranks sends in a step of TopK, by purpose; `dead_…` only while some latents are dead.

    `layout` is the whole one, `element` the bytes of a number. It is the fast step's (step.py) where that applies.
    """
    shape = config.dictionary
    tokens = config.batch // data * layout.copies
    d_in, d_out = layout.blocks[0].reads.stop, layout.d_out // layout.copies
    latents, own = shape.latents // latent, shape.block_latents // latent
    gather, reduce, over_data = latent - 1, 2 * (latent - 1) / latent, 2 * (data - 1) / data
    written = sum(block.writes.stop - block.writes.start for block in layout.blocks) * len(shape.prefixes)
    k_aux = aux_width(shape.k, d_out, shape.latents)
    some = tokens / max(1, round(k_aux / shape.k))
    alike = d_out * (1 + (d_in if shape.skip else 0))
    bytes_sent = {
        "candidates": gather * tokens * min(shape.k, own) * len(layout.blocks) * element,
        "outputs": reduce * tokens * written * element,
        "gradients": (over_data * (latents * (d_in + d_out + 1) + alike) + (reduce * d_in if shape.is_sae else 0))
        * element,
        "dead_candidates": gather * some * min(k_aux, own) * element,
        "dead_outputs": reduce * some * d_out * element,
    }
    return {purpose: round(count) for purpose, count in bytes_sent.items()}


def held(config: TrainConfig, layout: Layout, data: int, latent: int, device: str = "cuda") -> dict[str, int]:
    """Bytes that one rank holds while a TopK dictionary is trained: weights, Adam's moments, gradients, and what a batch takes.

    On the CPU gradients exist for 1,024 latents at a time; on a GPU whole, and AuxK holds its pre-activations of some tokens.
    """
    shape = config.dictionary
    tokens, latents = config.batch // data * layout.copies, shape.latents // latent
    d_in, d_out = layout.blocks[0].reads.stop, layout.d_out // layout.copies
    weights = 4 * (latents * (d_in + d_out + 1) + d_out)
    k = min(shape.k, latents)
    k_aux = aux_width(shape.k, d_out, shape.latents)
    some = math.ceil(tokens / max(1, round(k_aux / shape.k)))
    batch = 4 * tokens * (2 * d_in + 4 * d_out) + 12 * tokens * k * (latent + 2)
    aux = 4 * some * ((latents if device == "cuda" else 0) + d_in + 2 * d_out) + 12 * some * min(k_aux, latents)
    bytes_held = {
        "weights": weights,
        "moments": weights if config.optimizer == "factored" else 2 * weights,
        "gradients": weights * (1 if device == "cuda" else min(1.0, 1024 / latents)),
        "batch": batch,
        "dead": aux if config.auxk else 0,
    }
    return {part: round(count) for part, count in bytes_held.items()}
