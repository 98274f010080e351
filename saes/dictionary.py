"""Dictionary: reads sites, gives sparse Codes, writes sites.

    SAE           codes = rule(W_enc (x - b_dec) + b_enc)     x_hat = sum_j a_j W_dec[j] + b_dec
    otherwise     codes = rule(W_enc x + b_enc)               y_hat = sum_j a_j W_dec[j] + b_dec (+ W_skip x)

The rules are in rules.py: topk, batch_topk, relu, gated, jumprelu. What it reads and writes is data, not a class, so one class serves
SAEs, transcoders (Dunefsky et al. 2024), crosscoders over layers or models (Lindsey et al. 2024), cross-layer transcoders
(Ameisen et al. 2025) and dictionaries that several layers share; layout.py says which latents see which sites. In memory
`W_enc` and `W_dec` are `[latent d]`, a latent is a row. Saved and loaded dictionaries act on raw activations: what training
centred and scaled is folded into the weights (fold.py).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ..kernels import decode
from . import rules
from .codes import Codes
from .dictionary_config import DictionaryConfig
from .drawn import drawn
from .errors import UserError
from .keep import KeepRule
from .layout import Block, layout_of, shapes_of, single

Activations = Tensor | Mapping[str, Tensor]


class Dictionary(nn.Module):
    """A trained dictionary; `.config` is its shape, `.metadata` where it comes from (model, shards, exclusion rule).

    Parameters, with d_in and d_out the summed widths of the sites: `W_enc [latent d_in]` (of a cross-layer or shared one
    `[latent d]`, of one site), `b_enc [latent]`, `W_dec [latent d_out]`, `b_dec [d_out]`; where there are any, else None,
    `W_skip [d_out d_in]`, `threshold [latent]`, `r_mag` and `b_mag [latent]`. A shared one has `[site latent]` and
    `[site d]` for the biases and thresholds; `at(site)` is the dictionary of one of its sites. `.folder` is where it was
    saved or loaded, None before.
    """

    W_enc: nn.Parameter
    b_enc: nn.Parameter
    W_dec: nn.Parameter
    b_dec: nn.Parameter
    W_skip: nn.Parameter | None
    threshold: nn.Parameter | None
    r_mag: nn.Parameter | None
    b_mag: nn.Parameter | None

    def __init__(
        self,
        config: DictionaryConfig,
        tensors: Mapping[str, Tensor],
        metadata: dict[str, Any] | None = None,
        widths: Mapping[str, int] | None = None,
    ):
        """`widths` of its sites; left out, sites that are read together have equal widths. UserError unless shapes fit."""
        super().__init__()
        self.config, self.metadata = config, metadata or {}
        self.folder: Path | None = None
        self._hashed: tuple[list[tuple[int, int]], str] | None = None
        self.layout = layout_of(config, tensors, widths)
        shapes = shapes_of(self.layout)
        for name, shape in shapes.items():
            if name not in tensors or tuple(tensors[name].shape) != shape:
                came = tuple(tensors[name].shape) if name in tensors else "none"
                raise UserError(
                    f"expected {name} of shape {shape} for this dictionary; got {came}; the file is damaged"
                )
            self.register_parameter(name, nn.Parameter(tensors[name], requires_grad=False))
        for name in ("W_skip", "threshold", "r_mag", "b_mag"):
            if name not in shapes:
                self.register_parameter(name, None)

    @property
    def read(self) -> str:
        """The site it reads, the first where there are several (`config.site`)."""
        return self.config.read

    @property
    def write(self) -> str:
        """The site it writes, the first where there are several (`config.sites_out`)."""
        return self.config.write

    @property
    def sites(self) -> tuple[str, ...]:
        """All sites that it reads or writes."""
        return self.config.sites

    @property
    def is_sae(self) -> bool:
        """True if it reads one site at a time and writes it."""
        return self.config.is_sae

    @property
    def is_single(self) -> bool:
        """True if it reads one site and writes one."""
        return len(self.layout.reads) == len(self.layout.writes) == 1

    @property
    def d_in(self) -> int:
        """Width of what it reads: the sum over its sites, or one site's if they share it."""
        return self.layout.d_in // self.layout.copies

    @property
    def d_out(self) -> int:
        """Width of what it writes."""
        return self.W_dec.shape[1]

    @property
    def fingerprint(self) -> str:
        """Names the weights: a hash over their float32 bytes and the config; kept until a weight is written to."""
        tensors = [tensor for _, tensor in sorted(self.named_parameters())]
        state = [(tensor.data_ptr(), tensor._version) for tensor in tensors]
        if self._hashed is None or self._hashed[0] != state:
            digest = hashlib.blake2b(self.config.identity().encode(), digest_size=16)
            for tensor in tensors:
                digest.update(tensor.detach().float().cpu().contiguous().numpy().data)
            self._hashed = state, digest.hexdigest()
        return self._hashed[1]

    @property
    def keep_rule(self) -> KeepRule:
        """The exclusion rule it was trained under; without one, every token is kept."""
        return KeepRule.from_dict(self.metadata.get("keep", {}))

    def kept(
        self,
        positions: Int[Tensor, "token"] | None,
        activations: Mapping[str, Tensor],
        tokens: Int[Tensor, "token"] | None = None,
    ) -> Bool[Tensor, "token"]:
        """The tokens that this dictionary answers for, given activations `{site: [token d]}` and token ids (see keep.py)."""
        return self.keep_rule.mask(positions, activations, tokens)

    def at(self, site: str) -> Dictionary:
        """The dictionary of one site of a shared one: the same matrices, the biases of that site; itself if there is but one."""
        if not self.layout.is_shared:
            if (site,) != self.config.site:
                raise UserError(
                    f"expected a site of a shared dictionary; {site} is read together with others; drop at()"
                )
            return self
        if site not in self.config.site:
            raise UserError(f"expected one of {', '.join(self.config.site)}; got {site}; name it")
        number = self.config.site.index(site)
        own = {name: tensor if name.startswith("W") else tensor[number] for name, tensor in self.named_parameters()}
        made = Dictionary(single(self.config, number), {n: t.detach() for n, t in own.items()}, self.metadata)
        made.folder = self.folder
        return made

    def encode(self, x: Activations) -> Codes:
        """Sparse codes of activations, per token: `[token d]`, `[token read d]`, or `{site: [token d]}` holding what is read.

        UserError for a shared dictionary, unless `x` holds exactly one of its sites: ask `at(site)`.
        """
        if self.layout.is_shared:
            return self._only(x).encode(x)
        flat = self._input(x)
        codes = [self.encode_block(block, flat[:, block.reads]) for block in self.layout.blocks]
        return codes[0] if len(codes) == 1 else joined(codes)

    def encode_block(self, block: Block, x: Float[Tensor, "token d"]) -> Codes:
        """The codes of one block's latents, numbered within the whole, from what the block reads."""
        values, indices = rules.encode(self.config, x, *self.encoder(block))
        return Codes(values, indices + block.latents.start if block.latents.start else indices)

    def encoder(self, block: Block) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """W_enc, b_enc and the rule's own tensors of one block, acting on x itself: an SAE's b_dec is folded into the biases."""
        W_enc, b_enc = self.W_enc[block.latents], self.b_enc[block.latents]
        extra = {name: getattr(self, name)[block.latents] for name in rules.EXTRA[self.config.activation]}
        if self.is_sae:
            shift = W_enc @ self.b_dec
            b_enc = b_enc - shift
            if "b_mag" in extra:
                extra["b_mag"] = extra["b_mag"] - extra["r_mag"].exp() * shift
        return W_enc, b_enc, extra

    def decode(self, codes: Codes, x: Activations | None = None) -> Any:
        """Reconstruction from codes; a skip path needs the input `x` too (ValueError without it).

        `[token d]` for one written site, `[token write d]` for several of one width, else `{site: [token d]}`.
        """
        flat = self.decode_flat(codes, x)
        widths = self.layout.writes
        if len(widths) == 1:
            return flat
        same = len({*widths.values()}) == 1
        return flat.unflatten(1, (len(widths), -1)) if same else self.layout.split(flat, widths)

    def decode_flat(self, codes: Codes, x: Activations | None = None) -> Float[Tensor, "token d_out"]:
        """The same with the written sites side by side. UserError for a shared dictionary: ask `at(site)`."""
        if self.layout.is_shared:
            raise UserError("expected the site of these codes, whose bias is its own; call at(site).decode(codes)")
        out = decode(codes.values, codes.indices, self.W_dec) + self.b_dec
        if self.W_skip is None:
            return out
        if x is None:
            raise UserError("expected the input x, which the skip path of this dictionary needs; call decode(codes, x)")
        return out + self._input(x) @ self.W_skip.T

    def forward(self, x: Activations) -> Any:
        """Reconstruction of what it writes from what it reads; of a shared one `{site: [token d]}` for each site of `x`."""
        if not self.layout.is_shared:
            return self.decode(self.encode(x), x)
        if isinstance(x, Tensor):
            return self._only(x)(x)
        return {
            out: self.at(site)(x[site])
            for site, out in zip(self.config.site, self.config.sites_out, strict=True)
            if site in x
        }

    def _only(self, x: Activations) -> Dictionary:
        """The dictionary of the one site that `x` holds."""
        found = [] if isinstance(x, Tensor) else [site for site in self.config.site if site in x]
        if len(found) != 1:
            raise UserError(
                f"expected {{site: tensor}} with one of {', '.join(self.config.site)}, which share this dictionary; "
                f"got {', '.join(found) or 'a tensor'}; call at(site)"
            )
        return self.at(found[0])

    def _input(self, x: Activations) -> Float[Tensor, "token d_in"]:
        reads = self.layout.reads
        if not isinstance(x, Tensor):
            for site in reads:
                if site not in x:
                    raise UserError(f"expected activations of {site}; got {', '.join(x)}; cache that site")
            x = self.layout.flat(x, reads)
        elif x.ndim == 3 and x.shape[1] == len(reads) > 1:
            x = x.flatten(1)
        if x.ndim != 2 or x.shape[1] != self.layout.d_in:
            shape = (
                f"[token {self.layout.d_in}]"
                if len(reads) == 1
                else f"[token {len(reads)} {self.layout.d_in // len(reads)}]"
            )
            raise UserError(
                f"expected activations {shape}; got {list(x.shape)}; is it {', '.join(reads) or 'this site'}?"
            )
        return x.to(self.W_enc.device, self.W_enc.dtype)

    def encoders(self) -> dict[str, Float[Tensor, "latent width"]]:
        """What each read site contributes to the latents: views of `W_enc` (a cross-layer latent reads only its own)."""
        if self.config.across == "cross_layer":
            return {
                site: self.W_enc[block.latents]
                for site, block in zip(self.layout.reads, self.layout.blocks, strict=True)
            }
        return (
            dict.fromkeys(self.layout.reads, self.W_enc)
            if self.layout.is_shared
            else self.layout.split(self.W_enc, self.layout.reads)
        )

    def decoders(self) -> dict[str, Float[Tensor, "latent width"]]:
        """What the latents write to each site: views of `W_dec`."""
        return (
            dict.fromkeys(self.layout.writes, self.W_dec)
            if self.layout.is_shared
            else self.layout.split(self.W_dec, self.layout.writes)
        )

    def save(self, folder: str | Path, format: str = "saelens") -> None:
        """Write a folder; left to itself our own, which SAELens v6 loads wherever it can express it (docs/formats.md).

        Other forms: sparsify, dictionary_learning. UserError for what the form cannot hold exactly.
        """
        from .formats import registry

        registry.write(self, Path(folder), format)
        if format == "saelens":
            self.folder = Path(folder)

    @staticmethod
    def load(path: str | Path, format: str = "auto", device: str | torch.device = "cpu", **known: Any) -> Dictionary:
        """Read a dictionary: a folder or file of any form in docs/formats.md, told apart by its files, or one on the hub.

        A `str` that is no local path may be `owner/name`, `owner/name/folder`, or `release/sae_id` of SAELens' registry; a `Path` is
        only ever local. `known` are `site`, `site_out` and `k`, where a file of another library does not tell them. UserError for
        anything that is missing, damaged, or that this class cannot express exactly.
        """
        from .formats import registry

        return registry.opened(path, format, **known).to(device)

    def push_to_hub(self, repo_id: str, folder: str = "", **about: Any) -> str:
        """Upload it with a model card and give back its address; `about`: metrics, private, message, token (formats/card.py)."""
        from .formats import card

        return card.push(self, repo_id, folder, **about)

    _repr_html_ = drawn

    def __repr__(self) -> str:
        config = self.config
        reads, writes = ", ".join(config.site) or "activations", ", ".join(config.sites_out)
        path = f"{reads} → {writes}" if config.is_transcoder else reads
        about = [f"top {config.k}" if config.activation == "topk" else f"{config.activation} {config.k}"]
        about += [config.across] if len(config.site) > 1 else []
        about += [f"matryoshka {', '.join(map(str, config.matryoshka))}"] if config.matryoshka else []
        about += ["skip"] if config.skip else []
        return f"Dictionary({path}: {config.latents:,} latents of {self.d_in} dimensions, {', '.join(about)})"


def joined(codes: list[Codes]) -> Codes:
    """Codes of the same tokens under several blocks, side by side."""
    return Codes(torch.cat([one.values for one in codes], 1), torch.cat([one.indices for one in codes], 1))
