"""Random dictionaries of every shape and rule, for the tests of their files."""

import torch
from unweave.saes import Dictionary, DictionaryConfig
from unweave.saes.dictionary import shapes_of
from unweave.saes.layout import Layout

RULES = ("topk", "batch_topk", "relu", "gated", "jumprelu")
A, B, C = (f"blocks.{layer}.hook_resid_post" for layer in range(3))
IN, OUT = "blocks.1.mlp.hook_in", "blocks.1.mlp.hook_out"
SHAPES = {
    "sae": dict(site=(A,)),
    "unnamed": dict(),
    "transcoder": dict(site=(IN,), site_out=(OUT,)),
    "skip": dict(site=(IN,), site_out=(OUT,), skip=True),
    "crosscoder": dict(site=(A, B, C)),
    "acausal": dict(site=(A, B), site_out=(C,)),
    "cross_layer": dict(site=(A, B, C), across="cross_layer"),
    "cross_layer_transcoder": dict(site=(A, B), site_out=(OUT, C), across="cross_layer"),
    "shared": dict(site=(A, B), across="shared"),
    "shared_transcoder": dict(site=(A, B), site_out=(C, OUT), across="shared"),
}


def made(
    shape: str = "sae",
    activation: str = "topk",
    *,
    width: int = 12,
    width_out: int | None = None,
    latents: int = 24,
    k: int = 4,
    matryoshka: tuple[int, ...] = (),
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    **metadata,
) -> Dictionary:
    """A random one: sites that are only written have `width_out` (left out: the same), thresholds are above zero."""
    config = DictionaryConfig(**SHAPES[shape], activation=activation, latents=latents, k=k, matryoshka=matryoshka)
    reads = dict.fromkeys(config.site or ("",), width)
    writes = dict.fromkeys(config.sites_out or ("",), (width_out or width) if config.is_transcoder else width)
    layout = Layout(config, reads, writes)
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        name: 0.3 * torch.randn(size, generator=generator, dtype=torch.float64)
        for name, size in shapes_of(layout).items()
    }
    if "threshold" in tensors:
        tensors["threshold"] = tensors["threshold"].abs()
        if activation == "batch_topk":
            tensors["threshold"] = tensors["threshold"][..., :1].expand_as(tensors["b_enc"]).clone()
    for block in layout.blocks if config.across == "cross_layer" else []:
        tensors["W_dec"][block.latents, : block.writes.start] = 0
    return Dictionary(config, {name: t.to(dtype) for name, t in tensors.items()}, metadata, {**reads, **writes})


def inputs(own: Dictionary, rows: int = 50, seed: int = 9) -> dict[str, torch.Tensor]:
    """Activations of each site that it reads."""
    generator = torch.Generator().manual_seed(seed)
    return {
        site: torch.randn(rows, width, generator=generator, dtype=torch.float64).to(own.W_enc.dtype)
        for site, width in own.layout.reads.items()
    }


def outputs(own: Dictionary, x: dict[str, torch.Tensor]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Dense codes and flat reconstruction, for each dictionary that a shared one is."""
    singles = [(own.at(site), {site: x[site]}) for site in own.config.site] if own.layout.is_shared else [(own, x)]
    pairs = [(one, part, one.encode(part)) for one, part in singles]
    return [(codes.dense(one.config.latents), one.decode_flat(codes, part)) for one, part, codes in pairs]


def error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """The largest difference over the root mean square of what is meant."""
    return float(
        (ours.double() - theirs.double()).abs().max() / theirs.double().square().mean().sqrt().clamp_min(1e-30)
    )
