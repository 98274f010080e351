"""The machine: a frozen pass in which every MLP, and whatever a dictionary reads and writes, is taken apart.

What stands at a station is *cut*: written as a sum of vectors that add up to it exactly,

    y[p] = sum_slots value * row  (+ W_skip x[p])  + constant[p] + error[p]          first[0] at position 0

so that nothing passes through a cut but by way of its sources. Every MLP is cut, since it is not linear: by the transcoders
that write it, by its own neurons where no transcoder does, or not at all (its output is then an error leaf). An SAE
cuts wherever it stands: the attention's output, an MLP's (whose neurons or transcoder then lie below the cut), the
residual stream. A cut of the stream is complete: all that is above it is explained by the SAE's latents and error, and
rows that end there go no further down.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ...saes.errors import UserError
from ...saes.models import model_info
from ...saes.sites import resolve_site
from ..parts import Part
from .frozen import FrozenPass, Norm, capture, is_finite
from .sources import Latents, NeuronRule, Neurons, Source, is_sum_of_neurons
from .stations import NORMED, TRANSCODED, Place, Station, locate

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


TRANSCODER_READS = (Place.STREAM, Place.MIDDLE, *NORMED)


class Cut(NamedTuple):
    """What stands at a station as a sum: sources (indices into Machine.sources) and leaves."""

    site: str
    writers: list[int]
    first: Float[Tensor, "d"]
    error: Float[Tensor, "token d"] | None
    constant: Float[Tensor, "token d"]


class Machine(NamedTuple):
    """A frozen pass, its sources in causal order, its cuts, and the constants of each attention at its stages."""

    frozen: FrozenPass
    sources: list[Source]
    cuts: dict[Station, Cut]
    attention: list[Float[Tensor, "token d"]]

    def readers(self, station: Station) -> list[int]:
        """The sources read at a station."""
        return [index for index, source in enumerate(self.sources) if source.read == station]

    def is_cut(self, layer: int, *places: Place) -> bool:
        """Whether one of these places of a block is cut."""
        return any(Station(layer, place) in self.cuts for place in places)


def complete_cuts(machine: Machine) -> dict[str, list[str]]:
    """What a graph's metadata say of dictionaries of the stream: nothing below these sites acts past them."""
    sites = [cut.site for station, cut in machine.cuts.items() if station.place in (Place.STREAM, Place.MIDDLE)]
    return {"complete_cuts": sites} if sites else {}


class Placed(NamedTuple):
    """A part with canonical sites and the stations it is read and written at."""

    part: Part
    read: Station
    norm: Norm | None
    writes: dict[Station, str]


def build_machine(
    model: TransformerBridge,
    tokens: Tensor,
    parts: Sequence[Part],
    neurons: NeuronRule = "half",
    sites: Collection[str] = (),
) -> Machine:
    """Run the model once and cut it, keeping activations at `sites` too; UserError for dictionaries that do not belong here."""
    named = [_canonical(model, part) for part in parts]
    frozen = capture(model, tokens, sorted({*sites, *(site for part in named for site in (part.read, *part.W_dec))}))
    placed = [_place(model, frozen, part) for part in named]
    _refuse_doubles(placed)
    sources: list[Source] = [Latents(each.part, frozen, each.read, each.norm, each.writes) for each in placed]
    transcoded = {station for each in placed if not each.part.is_sae for station in each.writes}
    sources += _neurons(frozen, transcoded, neurons)
    sources.sort(key=lambda source: source.read)
    names = {station: site for each in placed for station, site in each.writes.items()}
    cuts = _cuts(frozen, sources, names, transcoded)
    return Machine(frozen, sources, cuts, [block.attention_constant() for block in frozen.blocks])


def _canonical(model: TransformerBridge, part: Part) -> Part:
    """The part with its sites spelled as this model's hooks are."""
    _same_model(model, part)
    if not all(is_finite(tensor) for tensor in part.tensors()):
        raise UserError(f"expected finite weights; the dictionary of {part.read} has NaN or infinity; load it anew")
    renamed = {site: resolve_site(model, site) for site in (part.read, *part.W_dec)}
    return replace(
        part,
        read=renamed[part.read],
        W_dec={renamed[site]: rows for site, rows in part.W_dec.items()},
        b_dec={renamed[site]: row for site, row in part.b_dec.items()},
        keep=replace(
            part.keep, max_norm={renamed.get(site, site): limit for site, limit in part.keep.max_norm.items()}
        ),
        known_fingerprint=part.fingerprint,
    )


def _same_model(model: TransformerBridge, part: Part) -> None:
    known, mine = (part.model or {}).get("fingerprint"), model_info(model)
    if known is not None and known != mine.fingerprint:
        raise UserError(
            f"expected dictionaries of {mine.name} (weights {mine.fingerprint[:8]}); got one trained on "
            f"{(part.model or {}).get('name')} (weights {known[:8]}); train or load one for this model"
        )


def _place(model: TransformerBridge, frozen: FrozenPass, part: Part) -> Placed:
    _, read = locate(model, frozen.blocks, part.read)
    writes = {locate(model, frozen.blocks, site)[1]: site for site in part.W_dec}
    if part.is_sae:
        read = Station(read.layer, Place.MLP_OUT) if read.place is Place.MLP else read
        writes = {read: part.read}
    allowed = (
        read.place not in NORMED
        if part.is_sae
        else read.place in TRANSCODER_READS and all(w.place in TRANSCODED for w in writes)
    )
    _check_skip(frozen, part, read, min(writes))
    if not allowed or len(writes) != len(part.W_dec) or any(station < read for station in writes):
        raise UserError(
            f"expected an SAE (one site), or a transcoder from an MLP's input to MLP outputs of its layer or later ones; "
            f"got {part.read} → {', '.join(part.W_dec)}; leave it out"
        )
    for site, rows in ((part.read, part.W_enc), *part.W_dec.items()):
        if rows.shape[1] != frozen.at[site].shape[1]:
            raise UserError(
                f"expected a dictionary of width {frozen.at[site].shape[1]} at {site}; got {rows.shape[1]}; is it another model's?"
            )
    return Placed(part, read, read_norm(frozen, part.read, read), writes)


def _check_skip(frozen: FrozenPass, part: Part, read: Station, write: Station) -> None:
    """A skip path leads from what its MLP reads to that MLP's output, or rows would come back to the wrong place."""
    block = frozen.blocks[write.layer] if write.layer < len(frozen.blocks) else None
    before_attention = read.place is Place.STREAM and not (block and block.is_parallel)
    if part.W_skip is not None and (part.is_sae or read.layer != write.layer or before_attention):
        raise UserError(
            f"expected W_skip from an MLP's input to the same MLP's output; got {part.read} → {', '.join(part.W_dec)}; "
            "leave it out, or read mlp.hook_in"
        )


def read_norm(frozen: FrozenPass, site: str, read: Station) -> Norm | None:
    """The norm through which a site reads the stream: without gain and bias inside the norm, None where there is none."""
    if read.place not in NORMED:
        return None
    norm = frozen.blocks[read.layer].mlp_norm
    if norm is not None and site.endswith("hook_normalized"):
        return norm._replace(gain=torch.ones_like(norm.gain), bias=None)
    return norm


def _refuse_doubles(placed: list[Placed]) -> None:
    seen: dict[Station, list[Part]] = defaultdict(list)
    for each in placed:
        for station, site in each.writes.items():
            for other in seen[station]:
                if other.read == each.part.read or other.is_sae or each.part.is_sae:
                    raise UserError(
                        f"expected at most one dictionary per layer and site; got two for {site} of block {station.layer} "
                        f"({other.read} and {each.part.read}); leave one out"
                    )
            seen[station].append(each.part)


def _neurons(frozen: FrozenPass, transcoded: set[Station], rule: NeuronRule) -> list[Neurons]:
    found = []
    for layer, block in enumerate(frozen.blocks):
        station = Station(layer, Place.MLP)
        if block.mlp is None or rule == "none" or _is_transcoded(layer, transcoded):
            continue
        if not is_sum_of_neurons(block):
            raise UserError(
                f"expected an MLP whose output is a sum of neurons in block {layer}; got {type(block.mlp).__name__}, which is not; "
                f"give a transcoder that reads blocks.{layer}.mlp.hook_in and writes blocks.{layer}.mlp.hook_out, or neurons='none'"
            )
        read = Station(layer, Place.PARALLEL_IN if block.is_parallel else Place.MLP_IN)
        found.append(Neurons(block, read, station, f"blocks.{layer}.mlp.hook_post", rule))
    return found


def _is_transcoded(layer: int, transcoded: set[Station]) -> bool:
    return any(Station(layer, place) in transcoded for place in TRANSCODED)


def _cuts(
    frozen: FrozenPass, sources: list[Source], names: dict[Station, str], transcoded: set[Station]
) -> dict[Station, Cut]:
    writers: dict[Station, list[int]] = defaultdict(list)
    for index, source in enumerate(sources):
        for station in source.writes:
            writers[station].append(index)
    cuts = {}
    for layer, block in enumerate(frozen.blocks):
        station = Station(layer, Place.MLP)
        is_met = Station(layer, Place.MLP_ADDED) not in transcoded or Station(layer, Place.MLP_OUT) in writers
        if block.mlp is not None and is_met:
            cuts[station] = _cut(frozen, sources, station, writers.pop(station, []), f"blocks.{layer}.mlp.hook_out")
    for station, indices in writers.items():
        cuts[station] = _cut(frozen, sources, station, indices, names[station])
    return dict(sorted(cuts.items()))


def _cut(frozen: FrozenPass, sources: list[Source], station: Station, writers: list[int], site: str) -> Cut:
    y = frozen.blocks[station.layer].seen["mlp_out"] if station.place is Place.MLP else frozen.at[site]
    written = [sources[index] for index in writers]
    constant = torch.zeros_like(y)
    for source in written:
        constant = constant + source.constant(station)
    constant[0] = 0
    latents = [source for source in written if isinstance(source, Latents)]
    if len(latents) < len(written):  # neurons are all of what they write
        return Cut(site, writers, y[0], None, constant)
    error = y.clone()
    for source in latents:
        error = error - source.reconstruction(station)
    error[0] = 0
    return Cut(site, writers, y[0], error, constant)
