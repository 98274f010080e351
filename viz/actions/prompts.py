"""A prompt, asked: which latents fire on it, what changing them does, what is written then. The work is in live.py."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from .registry import action, stream

if TYPE_CHECKING:
    from ..live import Live


@action("features")
def features(live: Live, body: dict[str, Any]) -> dict[str, Any]:
    """{store, text | messages, rank, target?, top}: the latents on every token, the next token, attribution to a target."""
    return live.features(body)


@action("steer")
def steer(live: Live, body: dict[str, Any]) -> dict[str, Any]:
    """{store, text | messages, edits, target?, controls, latents, seed}: what edits do, attention frozen and free, beside controls."""
    return live.steer(body)


@stream("generate")
def generate(live: Live, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """{store, text | messages, edits, tokens, temperature, seed}: what is written, unchanged and changed, piece by piece."""
    return live.generate(body)
