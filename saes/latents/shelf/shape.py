"""The arrays of a FeatureStore: which there are, of what shape, and whether those of an opened one fit together.

Shapes are compared when a store is opened, which reads no array. What an array says (a row, a token, a latent) is checked
when it is read, by whoever reads it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from ...errors import UserError
from ..gather.stats import BINS

# The axes after the latent: a word stands for one size throughout, a number for itself.
INTEGERS = {
    "count": "",
    "histogram": str(BINS),
    "example_rows": "example",
    "sample_rows": "sample",
    "sample_bins": "sample",
    "window_counts": "slot",
    "neighbours": "near",
    "top_logit_tokens": "top",
    "bottom_logit_tokens": "top",
    "logit_histogram": "effect",
    "token_ids": "token",
    "token_counts": "token",
    "distinct_tokens": "",
    "position_top": "",
}
FLOATS = {
    **dict.fromkeys(("density", "mean_value", "std_value", "max_value", "token_entropy", "context_entropy"), ""),
    **dict.fromkeys(("firing_entropy", "token_share", "position_share", "mean_position"), ""),
    **dict.fromkeys(("encoder_cosine", "decoder_norm", "logit_std", "logit_kurtosis"), ""),
    "example_values": "example",
    "example_windows": "example window",
    "sample_values": "sample",
    "neighbour_cosines": "near",
    "top_logit_values": "top",
    "bottom_logit_values": "top",
    "logit_range": "2",
    "token_lift": "token",
}
# Arrays that come together or not at all.
NEEDED = {
    "count", "density", "mean_value", "std_value", "max_value", "token_entropy", "context_entropy", "histogram",
    "example_rows", "example_values", "neighbours", "neighbour_cosines",
}  # fmt: skip
WINDOWS = {"window_starts", "window_counts", "window_offsets", "window_values"}
TOGETHER = (
    {"sample_rows", "sample_values", "sample_bins"},
    {"top_logit_tokens", "top_logit_values", "bottom_logit_tokens", "bottom_logit_values"},
    {"logit_histogram", "logit_range"},
    {"token_ids", "token_counts", "token_lift"},
    WINDOWS,
)
TEXT = ("tokens", "positions", "documents")


def damaged(folder: Path, what: str) -> UserError:
    """The error of a store whose arrays say what cannot be."""
    return UserError(
        f"expected a whole FeatureStore in {folder}; its arrays do not fit together ({what}); collect it anew"
    )


def misfit(arrays: dict[str, Tensor], text: dict[str, Tensor], manifest: dict[str, Any]) -> str:
    """What does not fit together, in words; empty if all does."""
    try:
        return _misfit(arrays, text, manifest)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        return f"malformed: {error!r}"


def _misfit(arrays: dict[str, Tensor], text: dict[str, Tensor], manifest: dict[str, Any]) -> str:
    if lacking := NEEDED - arrays.keys():
        return f"no {', '.join(sorted(lacking))}"
    if not ({"example_windows"} <= arrays.keys() or arrays.keys() >= WINDOWS):
        return "no values around the examples"
    for group in TOGETHER:
        if 0 < len(group & arrays.keys()) < len(group):
            return f"no {', '.join(sorted(group - arrays.keys()))}"
    before, after = manifest["before"], manifest["after"]
    if not all(isinstance(number, int) and 0 <= number < 4096 for number in (before, after)):
        return "a window of no size"
    sizes = {"latent": len(arrays["count"]), "window": before + 1 + after}
    for name, shape, is_float in _expected():
        if name in arrays and (wrong := _wrong_shape(arrays[name], shape, is_float, sizes)):
            return f"{name} is {wrong}"
    if "window_starts" in arrays and (wrong := _wrong_windows(arrays, sizes)):
        return wrong
    return _wrong_text(text)


def _expected() -> list[tuple[str, list[str], bool]]:
    shapes = [(name, shape, False) for name, shape in INTEGERS.items()]
    shapes += [(name, shape, True) for name, shape in FLOATS.items()]
    return [(name, ["latent", *shape.split()], is_float) for name, shape, is_float in shapes]


def _wrong_shape(array: Tensor, shape: list[str], is_float: bool, sizes: dict[str, int]) -> str:
    if array.ndim != len(shape) or array.is_floating_point() != is_float:
        return f"{array.dtype} {list(array.shape)}"
    for axis, size in zip(shape, array.shape, strict=True):
        if size != (int(axis) if axis.isdigit() else sizes.setdefault(axis, size)):
            return f"of {size} {axis}s"
    return ""


def _wrong_windows(arrays: dict[str, Tensor], sizes: dict[str, int]) -> str:
    starts, offsets, values = (arrays[f"window_{name}"] for name in ("starts", "offsets", "values"))
    is_whole = (
        starts.ndim == offsets.ndim == values.ndim == 1
        and not starts.is_floating_point()
        and not offsets.is_floating_point()
        and values.is_floating_point()
        and len(starts) == sizes["latent"] + 1
        and len(offsets) == len(values)
        and sizes["slot"] == sizes["example"] + sizes.get("sample", 0)
    )
    return "" if is_whole else "the values around the examples are of other sizes"


def _wrong_text(text: dict[str, Tensor]) -> str:
    if lacking := {*TEXT, "vocab_bytes", "vocab_ends"} - text.keys():
        return f"no {', '.join(sorted(lacking))}"
    if any(array.ndim != 1 or array.is_floating_point() for array in text.values()):
        return "the text is no list of numbers"
    return "" if len({len(text[name]) for name in TEXT}) == 1 else "the text's columns are of different lengths"
