"""Runs in which features of a graph are removed and the rest of the model is free to respond, many sets at a time.

A removed neuron's activation becomes its baseline b (0, or its mean over the prompt's positions past the first); of a
dictionary, y += sum_j (b_j - a_j) W_dec[j] over the removed latents, a_j encoded in this very run, the mean over tokens that it
answers for. Nothing at position 0 and
nothing at tokens that the dictionary does not answer for is touched, and reconstruction errors stay.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ...kernels import decode
from ..graph import Graph
from ..parts import Part
from ..tracing.frozen import quiet
from .constrained import Hook, live, read_sites, with_stream
from .edits import Catalogue, Key
from .effects import BATCH_TOKENS, Outcome


class Members(NamedTuple):
    """The graph's features of one key: which of `features` they are, where, their index and what replaces them."""

    feature: Int[Tensor, "member"]
    position: Int[Tensor, "member"]
    index: Int[Tensor, "member"]


class Removal:
    """Runs in which a graph's features are removed unless they are kept."""

    def __init__(
        self,
        catalogue: Catalogue,
        graph: Graph,
        tokens: Int[Tensor, "token"],
        features: Sequence[int],
        is_all: bool,
        is_mean: bool,
    ):
        self.catalogue, self.tokens, self.is_all = catalogue, tokens, is_all
        groups: dict[Key, list[tuple[int, int, int]]] = {key: [] for key in (_every_key(catalogue) if is_all else ())}
        for place, i in enumerate(features):
            node = graph.nodes[i]
            groups.setdefault(catalogue.key(node), []).append((place, node.position, node.index))
        self.members = {
            key: Members(*torch.tensor(group, dtype=torch.int64, device=tokens.device).reshape(-1, 3).unbind(1))
            for key, group in groups.items()
        }
        parts = {key: catalogue.parts[key.site] for key in groups if key.kind == "latent"}
        sites = [key.site for key in groups] + [site for part in parts.values() for site in catalogue.written(part)]
        seen = read_sites(catalogue.model, tokens, sites)
        self.live = {key: live(catalogue, part, seen, tokens) for key, part in parts.items()}
        self.means = {key: self._mean(key, seen[key.site].flatten(1), is_mean) for key in groups}

    def _mean(self, key: Key, x: Float[Tensor, "token width"], is_mean: bool) -> Float[Tensor, "feature"]:
        """What replaces each feature: 0, or its mean activation, of a neuron past position 0, of a latent where its part answers."""
        part = self.catalogue.parts.get(key.site) if key.kind == "latent" else None
        if part is None:
            return x[1:].mean(0) * is_mean
        # A massive token's codes would be all of the mean.
        x = x[self.live[key]]
        if not len(x):
            return torch.zeros(part.latents, dtype=part.W_enc.dtype, device=x.device)
        codes = part.encode(x.to(part.W_enc.dtype))
        total = torch.zeros(part.latents, dtype=codes.values.dtype, device=x.device)
        return total.index_add(0, codes.indices.flatten().long(), codes.values.flatten()) / len(x) * is_mean

    def run(self, outcome: Outcome, kept: Bool[Tensor, "set feature"]) -> tuple[float, Float[Tensor, "set"]]:
        """The outcome of the unmodified model, and with all but the kept features of each set removed."""
        batch = max(1, BATCH_TOKENS // len(self.tokens))
        full = float(self._pass(outcome, [], 1))
        values = [
            self._pass(outcome, self._hooks(some.to(self.tokens.device)), len(some)) for some in kept.split(batch)
        ]
        return full, torch.cat(values)

    def _pass(self, outcome: Outcome, hooks: list[Hook], rows: int) -> Float[Tensor, "row"]:
        final: list[Tensor] = []
        seen: dict[str, Tensor] = {}

        def keep(value: Tensor, hook: Any, site: str) -> None:
            seen[site] = value

        watch: list[Any] = [("hook_unembed", lambda value, hook: final.append(value[:, -1]))]
        watch += [
            (site, lambda value, hook, site=site: keep(value, hook, site)) for site in dict.fromkeys(outcome.sites)
        ]
        with torch.no_grad(), quiet():
            self.catalogue.model.run_with_hooks(self.tokens.repeat(rows, 1), fwd_hooks=[*hooks, *watch])
        return outcome(final[0], seen).cpu()

    def _hooks(self, kept: Bool[Tensor, "row feature"]) -> list[Hook]:
        own: list[Hook] = []
        saes: list[Hook] = []
        readers: list[Hook] = []
        for key, members in self.members.items():
            keep = kept[:, members.feature]
            if key.kind == "neuron":
                own.append((key.site, self._neurons(key, members, keep)))
                continue
            part = self.catalogue.parts[key.site]
            if part.is_sae:
                (W_dec,) = part.W_dec.values()
                saes += with_stream(self.catalogue, key.site, self._sae(key, part, members, keep, W_dec))
                continue
            codes: dict[str, Any] = {}
            readers.append((key.site, self._reader(key, part, members, keep, codes)))
            for site, W_dec in self.catalogue.written(part).items():
                own += with_stream(self.catalogue, site, self._writer(codes, members, W_dec))
        return own + saes + readers

    def _neurons(self, key: Key, members: Members, keep: Bool[Tensor, "row member"]) -> Callable[..., Tensor]:
        mean = self.means[key]

        def edit(post: Tensor, hook: Any) -> Tensor:
            out = post.clone()
            if self.is_all:
                out[:, 1:] = mean.to(post)
            now = post[:, members.position, members.index]
            out[:, members.position, members.index] = torch.where(keep, now, mean[members.index].to(post))
            return out

        return edit

    def _reader(
        self, key: Key, part: Part, members: Members, keep: Bool[Tensor, "row member"], codes: dict[str, Any]
    ) -> Callable[..., None]:
        def read(x: Tensor, hook: Any) -> None:
            codes["now"] = self._deltas(key, part, members, keep, x)

        return read

    def _sae(
        self, key: Key, part: Part, members: Members, keep: Bool[Tensor, "row member"], W_dec: Tensor
    ) -> Callable[[Tensor], Tensor]:
        def change(x: Tensor) -> Tensor:
            return _write(x, self._deltas(key, part, members, keep, x), members, W_dec)

        return change

    def _writer(self, codes: dict[str, Any], members: Members, W_dec: Tensor) -> Callable[[Tensor], Tensor]:
        return lambda out: _write(out, codes["now"], members, W_dec)

    def _deltas(self, key: Key, part: Part, members: Members, keep: Bool[Tensor, "row member"], x: Tensor) -> Deltas:
        flat = x.flatten(2)
        codes = part.encode(flat.flatten(0, 1).to(part.W_enc.dtype))
        values, indices = (column.unflatten(0, flat.shape[:2]) for column in codes)
        mean = self.means[key]
        chosen = indices[:, members.position] == members.index[None, :, None].to(indices)
        away = mean[members.index] - (values[:, members.position] * chosen).sum(2)
        lives = self.live[key]
        if not self.is_all:
            return Deltas(away * ~keep * lives[members.position], None, lives, mean)
        return Deltas(-away * keep * lives[members.position], (values, indices), lives, mean)


class Deltas(NamedTuple):
    """Changes of a part's latents: of the members, and (everything else removed too) the codes of all that are active."""

    members: Float[Tensor, "row member"]
    codes: tuple[Tensor, Tensor] | None
    live: Bool[Tensor, "token"]
    mean: Float[Tensor, "latent"]


def _write(out: Tensor, deltas: Deltas, members: Members, W_dec: Float[Tensor, "latent d"]) -> Tensor:
    """`out` with the changes decoded and added."""
    flat = out.flatten(2).clone()
    rows = W_dec[members.index.to(W_dec.device)].to(out)
    for row, delta in zip(flat, deltas.members.to(out), strict=True):
        row.index_add_(0, members.position, delta[:, None] * rows)
    if deltas.codes is not None:
        values, indices = (column.flatten(0, 1) for column in deltas.codes)
        gone = decode(values, indices, W_dec.to(values)).view(*flat.shape[:2], -1)
        flat += ((deltas.mean.to(values) @ W_dec.to(values) - gone) * deltas.live[:, None]).to(out)
    return flat.view(out.shape)


def _every_key(catalogue: Catalogue) -> list[Key]:
    """All parts, and the neurons of every block whose MLP output no dictionary writes."""
    written = {site for part in catalogue.parts.values() if not part.is_sae for site in catalogue.written(part)}
    outputs = ("mlp.hook_out", "hook_mlp_out")
    present = catalogue.model.hook_dict
    neurons = [
        Key("neuron", f"blocks.{layer}.mlp.hook_post")
        for layer in range(catalogue.model.cfg.n_layers)
        if f"blocks.{layer}.mlp.hook_post" in present
        and not written
        & {catalogue.site(f"blocks.{layer}.{name}") for name in outputs if f"blocks.{layer}.{name}" in present}
    ]
    return neurons + [Key("latent", read) for read in catalogue.parts]
