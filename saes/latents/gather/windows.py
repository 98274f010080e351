"""Examples and samples as a store keeps them: fixed-width lists of places, and the values around all of them, sparse.

A latent has slots: its examples, then its samples. `window_counts` says how many values around each slot's token are kept
(those of tokens on which the latent fires, within the window and the block); their places in the window and they themselves
lie one after another, from `window_starts` of the latent on.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .places import Around, Part, rank_in_group

NO_BIN = 255


def place_arrays(
    examples: Part, most_examples: int, samples: Part, most_samples: int, bins: int, latents: int
) -> dict[str, Tensor]:
    """The arrays of `examples` (grouped by latent) and `samples` (by latent and bin), both as Places.held orders them."""
    width = most_examples + most_samples
    out, slots = {}, []
    for name, part, latent, most, first in (
        ("example", examples, examples.key >> 31, most_examples, 0),
        ("sample", samples, (samples.key >> 31) // bins, most_samples, most_examples),
    ):
        rank = rank_in_group(latent)
        values, rows = torch.zeros(latents, most), torch.full((latents, most), -1)
        values[latent, rank], rows[latent, rank] = part.value, part.row
        fits = not rows.numel() or int(rows.max()) < 2**31
        out |= {f"{name}_values": values, f"{name}_rows": rows.int() if fits else rows}
        slots.append(latent * width + first + rank)
    out["sample_bins"] = torch.full((latents, most_samples), NO_BIN, dtype=torch.uint8)
    out["sample_bins"][out["sample_rows"] >= 0] = ((samples.key >> 31) % bins).byte()
    around = Around(*map(torch.cat, zip(examples.around, samples.around, strict=True)))
    slot = torch.cat(slots)
    counts = torch.zeros(latents * width, dtype=torch.uint8)
    counts[slot] = around.count
    around = around.take(slot.argsort())
    counts = counts.view(latents, width)
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), counts.sum(1, dtype=torch.int64).cumsum(0)])
    return out | {
        "window_starts": starts,
        "window_counts": counts,
        "window_offsets": around.offset,
        "window_values": around.value,
    }


def windows_of(arrays: dict[str, Tensor], latent: int, size: int) -> list[list[float]]:
    """A latent's values around each of its slots, 0 where it is silent (in version 2 also at the slot's own token).

    ValueError where the arrays do not fit together.
    """
    if "example_windows" in arrays:  # version 1
        return arrays["example_windows"][latent].tolist()
    begin, end = arrays["window_starts"][latent : latent + 2].tolist()
    counts = arrays["window_counts"][latent].tolist()
    if not 0 <= begin <= end <= len(arrays["window_offsets"]) or end - begin != sum(counts):
        raise ValueError("values around the examples")
    offsets, values = arrays["window_offsets"][begin:end].tolist(), arrays["window_values"][begin:end].tolist()
    if offsets and not (0 <= min(offsets) and max(offsets) < size):
        raise ValueError("values around the examples lie outside their windows")
    windows, entry = [], 0
    for count in counts:
        window = [0.0] * size
        for offset, value in zip(offsets[entry : entry + count], values[entry : entry + count], strict=True):
            window[offset] = value
        windows.append(window)
        entry += count
    return windows
