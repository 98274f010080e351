"""Parts: what tracing and interventions need of a dictionary, whatever library it came from.

A `Part` reads one site, encodes token by token, and writes one or more sites:

    pre = W_enc x + b_enc        a = rule(pre)        y[site] = sum_j a_j W_dec[site][j] + b_dec[site]  (+ W_skip x)

* an SAE reads where it writes (its -W_enc b_dec is already inside b_enc);
* a transcoder reads mlp.hook_in and writes mlp.hook_out, a skip transcoder adds W_skip x there;
* a cross-layer transcoder is a list of parts, one per layer it reads, each writing that layer and later ones (Ameisen et al. 2025).

`parts` makes them from a `saes.Dictionary`; anything else that has these tensors is traced by making a `Part` of it.
The rules: topk keeps the k largest pre-activations of a token, ReLU'd; relu; jumprelu keeps those above a threshold of
their latent. All are per token. Within the support they select, an active latent's activation is its pre-activation.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..saes.codes import Codes
from ..saes.errors import UserError
from ..saes.keep import KeepRule
from ..saes.layout import columns
from ..saes.sites import layer_of

BLOCK = 1024  # tokens whose dense pre-activations are held at once


@dataclass(frozen=True)
class Rule:
    """Which latents of a token are active."""

    kind: Literal["topk", "relu", "jumprelu"]
    k: int = 0
    threshold: Float[Tensor, "latent"] | None = None

    def __post_init__(self) -> None:
        complete = {"topk": self.k > 0, "relu": True, "jumprelu": self.threshold is not None}
        if not complete.get(self.kind, False):
            raise UserError(
                f"expected Rule('topk', k=32), Rule('relu') or Rule('jumprelu', threshold=[latent]); got {self.kind!r} "
                f"with k={self.k}; complete it"
            )

    def __call__(self, pre: Float[Tensor, "token latent"]) -> Float[Tensor, "token latent"]:
        """Activations: the pre-activations of the active latents, 0 elsewhere."""
        if self.kind == "topk":
            best = pre.topk(min(self.k, pre.shape[1]), dim=1)
            return torch.zeros_like(pre).scatter_(1, best.indices, best.values.relu())
        if self.threshold is None:
            return pre.relu()
        return pre * (pre > self.threshold.to(pre))


@dataclass(frozen=True, eq=False)
class Part:
    """One read site of a dictionary with all that it writes; tensors as in the module header."""

    read: str
    W_enc: Float[Tensor, "latent d_in"]
    b_enc: Float[Tensor, "latent"]
    W_dec: dict[str, Float[Tensor, "latent d_out"]]
    b_dec: dict[str, Float[Tensor, "d_out"]]
    rule: Rule
    W_skip: Float[Tensor, "d_out d_in"] | None = None
    keep: KeepRule = field(default_factory=KeepRule)
    name: str = ""
    folder: Path | None = None
    model: dict[str, Any] | None = None
    known_fingerprint: str = ""

    def __post_init__(self) -> None:
        latents = len(self.W_enc)
        if layer_of(self.read) is None or not self.W_dec or any(layer_of(site) is None for site in self.W_dec):
            raise UserError(
                f"expected sites inside blocks (blocks.L.…); got {self.read} → {', '.join(self.W_dec) or 'nothing'}; name them"
            )
        wrong = [site for site, rows in self.W_dec.items() if len(rows) != latents]
        if len(self.b_enc) != latents or wrong or set(self.b_dec) - set(self.W_dec):
            raise UserError(
                f"expected b_enc, and W_dec and b_dec per written site, of {latents} latents (as W_enc has); "
                f"got {len(self.b_enc)} and { ({site: len(rows) for site, rows in self.W_dec.items()}) }; is it [latent d]?"
            )

    @property
    def layer(self) -> int:
        """The block that it reads."""
        layer = layer_of(self.read)
        assert layer is not None
        return layer

    @property
    def is_sae(self) -> bool:
        """True when it writes where it reads."""
        return self.read in self.W_dec

    @property
    def latents(self) -> int:
        """How many latents it has."""
        return len(self.W_enc)

    @cached_property
    def fingerprint(self) -> str:
        """Names the weights and sites; the dictionary's own where it was made of one."""
        if self.known_fingerprint:
            return self.known_fingerprint
        digest = hashlib.blake2b(
            f"{self.read} {list(self.W_dec)} {self.rule.kind} {self.rule.k}".encode(), digest_size=16
        )
        for tensor in self.tensors():
            digest.update(tensor.detach().float().cpu().contiguous().numpy().data)
        return digest.hexdigest()

    def tensors(self) -> list[Tensor]:
        """All its weights."""
        more = [each for each in (self.W_skip, self.rule.threshold) if each is not None]
        return [self.W_enc, self.b_enc, *self.W_dec.values(), *self.b_dec.values(), *more]

    def encode(self, x: Float[Tensor, "token d_in"]) -> Codes:
        """Sparse codes of `x`, as wide as the fullest token needs (at least 1); empty slots have value 0."""
        codes = [self._encode(block) for block in x.split(BLOCK)]
        width = max(values.shape[1] for values, _ in codes)
        padded = [[torch.nn.functional.pad(part, (0, width - part.shape[1])) for part in pair] for pair in codes]
        return Codes(*(torch.cat(column) for column in zip(*padded, strict=True)))

    def _encode(self, x: Float[Tensor, "token d_in"]) -> tuple[Float[Tensor, "token k"], Int[Tensor, "token k"]]:
        pre = torch.addmm(self.b_enc.to(x), x, self.W_enc.to(x).T)
        if self.rule.kind == "topk":
            best = pre.topk(min(self.rule.k, self.latents), dim=1)
            width = max(1, int((best.values > 0).sum(1).max()))  # largest first, so that what is 0 stands last
            return best.values[:, :width].relu(), best.indices[:, :width]
        active = self.rule(pre)
        width = max(1, int((active != 0).sum(1).max()))
        best = active.abs().topk(width, dim=1).indices
        return active.gather(1, best), best

    def kept(
        self,
        positions: Int[Tensor, "token"],
        activations: dict[str, Float[Tensor, "token d"]],
        tokens: Int[Tensor, "token"] | None = None,
    ) -> Bool[Tensor, "token"]:
        """The tokens that it answers for: those that its training kept as they are (saes/keep.py)."""
        return self.keep.mask(positions, activations, tokens)


def parts(dictionaries: Any) -> list[Part]:
    """The parts of a dictionary, a Part, or any nesting of lists of them, in the given order."""
    if isinstance(dictionaries, Part):
        return [dictionaries]
    if hasattr(dictionaries, "W_enc") and hasattr(dictionaries, "config"):
        return _parts_of(dictionaries)
    if isinstance(dictionaries, Iterable) and not isinstance(dictionaries, str | Tensor):
        return [part for dictionary in dictionaries for part in parts(dictionary)]
    raise UserError(
        f"expected a Dictionary, a Part or a list of them; got {type(dictionaries).__name__}; open it first"
    )


def _parts_of(dictionary: Any) -> list[Part]:
    """A part for each site that its latents read: one, or as many as a cross-layer or shared dictionary has."""
    config, layout = dictionary.config, dictionary.layout
    if layout.is_shared:
        return [part for site in config.site for part in _parts_of(dictionary.at(site))]
    if config.across == "together" and len(config.site) > 1:
        raise UserError(
            f"expected latents that read one site each; those of a crosscoder read {', '.join(config.site)} at once; "
            "trace with transcoders or a cross-layer dictionary"
        )
    reads, several = list(layout.reads), len(layout.blocks) > 1
    found = []
    for number, block in enumerate(layout.blocks):
        # A cross-layer block writes its own site and the later ones.
        writes = list(layout.writes)[number if several else 0 :]
        W_dec, b_dec = layout.split(dictionary.W_dec.detach(), layout.writes), dictionary.b_dec.detach()
        biases = {site: b_dec[column] for site, column in zip(layout.writes, columns(layout.writes), strict=True)}
        W_enc, b_enc, rule = _encoder(dictionary, block)
        found.append(
            Part(
                reads[number],
                W_enc,
                b_enc,
                {site: W_dec[site][block.latents] for site in writes},
                # A site's bias is written once, by the block that reads it.
                {site: biases[site] for site in (writes[:1] if several else writes)},
                rule,
                None if dictionary.W_skip is None else dictionary.W_skip.detach(),
                dictionary.keep_rule,
                folder=dictionary.folder,
                model=dictionary.metadata.get("model"),
                known_fingerprint="" if several else dictionary.fingerprint,
            )
        )
    return found


def _encoder(dictionary: Any, block: Any) -> tuple[Float[Tensor, "latent d_in"], Float[Tensor, "latent"], Rule]:
    """Weights, biases and rule of a block's latents, so that an active value is its pre-activation.

    A gated latent is a JumpReLU one: exp(r_mag) W_enc x + b_mag where that exceeds b_mag - exp(r_mag) b_enc, and 0
    (Rajamanoharan et al. 2024, arXiv 2404.16014, appendix E).
    """
    config = dictionary.config
    W_enc, b_enc, extra = dictionary.encoder(block)
    W_enc, b_enc, extra = W_enc.detach(), b_enc.detach(), {name: tensor.detach() for name, tensor in extra.items()}
    if config.activation == "gated":
        gain = extra["r_mag"].exp()
        threshold = (extra["b_mag"] - gain * b_enc).clamp_min(0)
        return gain[:, None] * W_enc, extra["b_mag"], Rule("jumprelu", threshold=threshold)
    if "threshold" in extra:
        return W_enc, b_enc, Rule("jumprelu", threshold=extra["threshold"])
    return W_enc, b_enc, Rule("topk", k=config.k) if config.activation == "topk" else Rule("relu")
