"""Let the model compute through a dictionary: what it writes is replaced by the dictionary's reconstruction.

At each position that the dictionary answers for (keep.py) every written site becomes

    y_hat                       (keep_error=False), or
    y_hat + (y - y_hat) = y     (keep_error=True), the error held fixed: nothing changes until codes are intervened on.

Other positions pass through untouched, unless `everywhere`. What is read comes from the pass that is running, so a later layer reads
what earlier replacements led to:

    one site read, or one dictionary shared   each site is replaced from what was read there
    cross_layer     a written site is the sum over what the sites read up to it gave in the same pass
    together        where several sites are read, what comes later in the pass is needed first (Lindsey et al. 2024: acausal), so a pass
                    without the replacement goes before, and all sites are read from it: two passes instead of one

Limits on norms (keep.py) hold at the sites that are known when a site is replaced: all of them after a pass that went before, else
those up to it. A massive activation passes through even if training saw it clipped, since the model computes with it as it is.
Token ids are those that reach the embedding in the pass that is running; a pass that skips it has none, and drops none by id.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..kernels import decode
from .codes import Codes
from .dictionary import Dictionary, joined
from .errors import UserError
from .layout import columns
from .models import model_info
from .sites import resolve_site

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

Replace = Callable[[str, Callable[[], Tensor], Tensor], Tensor]
"""What a written site becomes: from its name, a function that gives its reconstruction, and its value, both `[token d]`."""
EMBEDDED = "embed.hook_in"  # where the token ids of a pass are seen


@contextlib.contextmanager
def splice(
    model: TransformerBridge, dictionaries: Iterable[Dictionary], keep_error: bool = False, everywhere: bool = False
) -> Iterator[TransformerBridge]:
    """Within the block, `model` computes through `dictionaries`; forward passes are over whole prompts (no KV cache).

    Raises UserError if a dictionary was trained on another model or a site that this one lacks.
    """

    def replace(site: str, reconstruct: Callable[[], Tensor], y: Float[Tensor, "token d"]) -> Float[Tensor, "token d"]:
        y_hat = reconstruct().to(y)
        return y_hat + (y - y_hat).detach() if keep_error else y_hat

    with contextlib.ExitStack() as stack:
        for dictionary in dictionaries:
            stack.enter_context(replacing(model, dictionary, replace, everywhere))
        yield model


@contextlib.contextmanager
def replacing(
    model: TransformerBridge,
    dictionary: Dictionary,
    replace: Replace,
    everywhere: bool = False,
    sites: Iterable[str] | None = None,
    real: Bool[Tensor, "batch seq"] | None = None,
) -> Iterator[None]:
    """Within the block, the written `sites` (default all) become `replace(…)` at the rows that `dictionary` answers for.

    `real` tells the tokens from the padding, which is never a row: it passes through, `everywhere` too.
    """
    check_model(dictionary, model)
    chosen = set(dictionary.config.sites_out if sites is None else sites)
    shared = dictionary.layout.is_shared
    each = [dictionary.at(site) for site in dictionary.config.site] if shared else [dictionary]
    with contextlib.ExitStack() as stack:
        for one in each:
            passing, names_tokens = Passing(one, replace, everywhere, chosen, real), bool(one.keep_rule.drop_tokens)
            hooks: list[Any] = [(EMBEDDED, passing.see_tokens)] if names_tokens else []
            hooks += [(name, passing.hook(group)) for name, group in by_point(model, one.sites).items()]
            stack.enter_context(model.hooks(fwd_hooks=hooks))
            if names_tokens or not one.is_single:
                stack.enter_context(before_each_pass(model, passing.begin))
        yield


def by_point(model: TransformerBridge, sites: Iterable[str]) -> dict[str, list[str]]:
    """The sites by the hook point that they name: two spellings of one place are seen together."""
    points: dict[str, list[str]] = {}
    for site in sites:
        points.setdefault(resolve_site(model, site), []).append(site)
    return points


class Passing:
    """What a dictionary has seen of the forward pass that is running, and what it makes of it."""

    def __init__(
        self,
        dictionary: Dictionary,
        replace: Replace,
        everywhere: bool,
        chosen: set[str],
        real: Bool[Tensor, "batch seq"] | None = None,
    ):
        self.dictionary, self.replace, self.everywhere, self.chosen = dictionary, replace, everywhere, chosen
        self.rule, self.real = dictionary.keep_rule, real
        self.goes_before = dictionary.config.across == "together" and len(dictionary.layout.reads) > 1
        self.is_before = False
        self.tokens: Int[Tensor, "batch seq"] | None = None
        self.x: dict[str, Float[Tensor, "token d"]] = {}
        self.codes: dict[int, Codes] = {}

    def begin(self, forward: Callable[[], Any]) -> None:
        """A pass begins: forget the last one, and run one without replacements where all sites must be read first."""
        self.tokens, self.x, self.codes = None, {}, {}
        if self.goes_before:
            from transformer_lens.model_bridge.exceptions import StopAtLayerException

            self.is_before = True
            try:
                with torch.no_grad(), contextlib.suppress(StopAtLayerException):
                    forward()
            finally:
                self.is_before = False

    def see_tokens(self, value: Tensor, hook: Any) -> None:
        """The hook of the embedding: the ids of the pass that is running."""
        self.tokens = value

    def hook(self, sites: list[str]) -> Callable[[Tensor, Any], Tensor | None]:
        """The hook of one place: remember what is read there, then replace it if it is written."""
        reads, writes = self.dictionary.layout.reads, self.dictionary.layout.writes

        def see(value: Tensor, hook: Any) -> Tensor | None:
            y = value.flatten(2).flatten(0, 1)
            if self.is_before or not self.goes_before:
                self.x.update({site: y for site in sites if site in reads or self.is_before})
            written = next((site for site in sites if site in writes and site in self.chosen), None)
            if written is None or self.is_before:
                return None
            kept = self.kept(value, written, y)
            out = y.clone()
            out[kept] = self.replace(written, lambda: self.reconstruction(written, kept), y[kept]).to(y)
            return out.view_as(value)

        return see

    def kept(self, value: Float[Tensor, "batch seq ..."], written: str, y: Tensor) -> Bool[Tensor, "token"]:
        """The rows to replace, by the rule at the sites that are known."""
        shape, device = value.shape[:2], value.device
        real = torch.ones(shape, dtype=torch.bool) if self.real is None else self.real
        real = real.to(device).flatten()
        if self.everywhere:
            return real
        positions = torch.arange(shape[1], device=device).expand(shape).flatten()
        tokens = None if self.tokens is None or self.tokens.shape != shape else self.tokens.flatten()
        return real & self.rule.mask(positions, {written: y, **self.x}, tokens)

    def reconstruction(self, site: str, kept: Bool[Tensor, "token"]) -> Float[Tensor, "kept d"]:
        """What the dictionary writes to `site` at the kept rows."""
        own, layout = self.dictionary, self.dictionary.layout
        number = list(layout.writes).index(site)
        needed = list(layout.reads)[: number + 1] if own.config.across == "cross_layer" else list(layout.reads)
        missing = [name for name in needed if name not in self.x]
        if missing:
            raise UserError(
                f"expected {', '.join(missing)} before {site} in the forward pass, since that is what it is written from; got "
                "no such activations; name the sites in the order of the model, and run it from its first layer"
            )
        if own.is_single:
            return own(self.x[needed[0]][kept])
        column = columns(layout.writes)[number]
        if own.config.across == "cross_layer":
            codes = joined([self.block_codes(block) for block in range(number + 1)])
        else:
            codes = self.codes[0] if 0 in self.codes else self.codes.setdefault(0, own.encode(self.x))
        W_dec, b_dec = own.W_dec[:, column].contiguous(), own.b_dec[column]
        return decode(codes.values[kept], codes.indices[kept], W_dec) + b_dec

    def block_codes(self, number: int) -> Codes:
        """The codes of one layer's latents, made once a pass."""
        if number not in self.codes:
            own, block = self.dictionary, self.dictionary.layout.blocks[number]
            x = self.x[list(own.layout.reads)[number]].to(own.W_enc.device, own.W_enc.dtype)
            self.codes[number] = own.encode_block(block, x)
        return self.codes[number]


@contextlib.contextmanager
def before_each_pass(model: TransformerBridge, begin: Callable[[Callable[[], Any]], None]) -> Iterator[None]:
    """Within the block, `begin` is called before each forward pass, with a function that runs that pass."""
    had = "forward" in vars(model)
    inner = model.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        begin(lambda: inner(*args, **kwargs))
        return inner(*args, **kwargs)

    model.forward = forward  # type: ignore[method-assign]  # run_with_hooks and run_with_cache call it by this name
    try:
        yield
    finally:
        if had:
            model.forward = inner  # type: ignore[method-assign]
        else:
            del model.forward


def check_model(dictionary: Dictionary, model: TransformerBridge) -> None:
    """UserError unless the dictionary was trained on this model's weights (one without provenance is accepted)."""
    trained = dictionary.metadata.get("model")
    info = model_info(model)
    if trained and trained["fingerprint"] != info.fingerprint:
        raise UserError(
            f"expected a dictionary of {info.name} (weights {info.fingerprint[:8]}); this one was trained on "
            f"{trained['name']} (weights {trained['fingerprint'][:8]}); load that model or another dictionary"
        )
