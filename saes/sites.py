"""Sites: names of places in a model, and the one spelling of each that files use.

A site may be given as TransformerLens 3 wrote it (`blocks.8.hook_mlp_out`), as the bridge calls it (`blocks.8.mlp.hook_out`)
or as a Hugging Face module path (`model.layers.8.mlp`, its output; `model.layers.8.mlp.input`, its input).
`resolve_site` gives the one canonical spelling, so that the same place never has two names in a manifest.
"""

from __future__ import annotations

import difflib
import re
from typing import Any

from .errors import UserError
from .plain_modules import PlainModel, as_model

# Where one hook point has several names, the first suffix here that names it is the canonical one.
PREFERRED = ("hook_resid_pre", "hook_resid_post", "hook_resid_mid", "mlp.hook_in", "mlp.hook_out", "mlp.hook_pre",
             "mlp.hook_post", "attn.hook_z", "hook_embed", "hook_pos_embed")  # fmt: skip
MODULE = re.compile(r"(?:.*\.)?(?:layers|h|blocks)\.(\d+)(?:\.(mlp|self_attn|attn|attention))?(?:\.(input|output))?")


def resolve_site(model: Any, name: str) -> str:
    """The canonical spelling of a site of `model` (a bridge, or a plain module); UserError with near names where there is none."""
    model = as_model(model)
    if isinstance(model, PlainModel):
        return model.resolve(name)
    hooks = model.hook_dict
    given = name if name in hooks else _module_path(name)
    if given not in hooks:
        near = difflib.get_close_matches(name, hooks, n=3) or [f"blocks.0.{suffix}" for suffix in PREFERRED[:5]]
        raise UserError(f"expected a site of this model; got {name!r}; did you mean {', '.join(near)}?")
    point = hooks[given]
    prefix = re.match(r"(blocks\.\d+\.)?", given).group()  # type: ignore[union-attr]  # the pattern matches any string
    aliases = (prefix + suffix for suffix in PREFERRED)
    return next((alias for alias in aliases if hooks.get(alias) is point), point.name or given)


def _module_path(name: str) -> str:
    match = MODULE.fullmatch(name)
    if match is None:
        return name
    layer, part, end = match.groups()
    if part is None:
        return f"blocks.{layer}.hook_resid_{'pre' if end == 'input' else 'post'}"
    return f"blocks.{layer}.{'mlp' if part == 'mlp' else 'attn'}.hook_{'in' if end == 'input' else 'out'}"


def layer_of(site: str) -> int | None:
    """The block that a site lies in, None outside the blocks."""
    match = re.match(r"blocks\.(\d+)\.", site)
    return int(match.group(1)) if match else None


def stop_layer(sites: list[str]) -> int | None:
    """The block at which a forward pass that needs only `sites` may stop (None: it must run to the end)."""
    layers = [0 if site in ("hook_embed", "hook_pos_embed") else layer_of(site) for site in sites]
    return None if None in layers else max(layer for layer in layers if layer is not None) + 1
