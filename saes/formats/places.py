"""Sites and numbers that are told only by names: of Hugging Face modules, and of the folders that a release is kept in."""

from __future__ import annotations

import re
from pathlib import Path

from ..sites import MODULE

# Gemma's norms around the MLP, and the input of the attention's output matrix: the heads' outputs side by side.
PARTS = {
    "pre_feedforward_layernorm.output": "mlp.hook_in",
    "post_feedforward_layernorm.output": "hook_mlp_out",
    "self_attn.o_proj.input": "attn.hook_z",
}
# l0_71 is no layer but how many latents are active.
LAYER = re.compile(r"(?<![a-z])(?:(?:layers?|blocks|h)[_.]?(\d{1,3})(?!\d)|l(\d{1,3})(?![\d_]))", re.IGNORECASE)
SPARSITY = re.compile(r"l0_(\d{1,6})(?!\d)", re.IGNORECASE)


def site_of_module(name: object, end: str = "output") -> tuple[str, ...]:
    """The site of a Hugging Face module path, its output unless the path or `end` says input; () for another name."""
    match = MODULE.fullmatch(name) if isinstance(name, str) else None
    if match is not None:
        layer, part, side = match.groups()
        side = side or end
        if part is None:
            return (f"blocks.{layer}.hook_resid_{'pre' if side == 'input' else 'post'}",)
        return (f"blocks.{layer}.{'mlp' if part == 'mlp' else 'attn'}.hook_{'in' if side == 'input' else 'out'}",)
    found = re.search(r"layers\.(\d{1,3})\.(.+)$", name) if isinstance(name, str) else None
    return (f"blocks.{found[1]}.{PARTS[found[2]]}",) if found and found[2] in PARTS else ()


def layer_in(path: Path) -> int | None:
    """The layer that the last part of a path names, or the part before it, and so on."""
    for part in reversed(path.parts[-6:]):
        found = LAYER.findall(part)
        if found:
            return int("".join(found[-1]))
    return None


def sparsity_in(path: Path) -> int:
    """How many latents are active on a token, where a path says it (`average_l0_71`); else 0."""
    found = SPARSITY.findall(str(path))
    return int(found[-1]) if found else 0
