"""Why a latent's card should be read with care: each warning with its rule, and the rules as filters of the list."""

from __future__ import annotations

from typing import NamedTuple

from ...saes import Feature

DENSE = 0.1  # a latent that fires on this share of the kept tokens or more is called dense
SINGLE_TOKEN = 0.4  # bits; one whose top examples have at most this token entropy is called single-token
POSITIONAL = 0.5  # one that has this share of its firings at one position is called positional
ENOUGH = 20  # firings that a latent needs before its shares mean anything


class Rule(NamedTuple):
    """A warning as a filter of the list (its syntax is in static/filters.js), and the columns that it reads."""

    filter: str
    columns: frozenset[str]


RULES = {
    "alive": Rule("count:1..", frozenset({"count"})),
    "dead": Rule("count:..0", frozenset({"count"})),
    "dense": Rule(f"density:{DENSE}..", frozenset({"density"})),
    "single-token": Rule(f"count:{ENOUGH}..;token_entropy:..{SINGLE_TOKEN}", frozenset({"count", "token_entropy"})),
    "positional": Rule(
        f"count:{ENOUGH}..;position_share:{POSITIONAL}..", frozenset({"count", "position_share"})
    ),
}  # fmt: skip


def warnings(feature: Feature) -> list[str]:
    """What to be careful of: dead, dense, positional or single-token."""
    if not int(feature.count):
        return ["dead: it never fired in this text"]
    found = []
    if float(feature.density) > DENSE:
        found.append(f"dense: it fires on {float(feature.density):.0%} of the kept tokens (more than {DENSE:.0%})")
    if float(feature.token_entropy) < SINGLE_TOKEN and int(feature.count) >= ENOUGH:
        found.append(
            f"single-token: its top examples have {float(feature.token_entropy):.2f} bits of token entropy "
            f"(less than {SINGLE_TOKEN})"
        )
    share = float(feature.position_share)
    if share >= POSITIONAL and int(feature.count) >= ENOUGH:
        position = int(feature.position_top)
        found.append(f"positional: {share:.0%} of its firings are at position {position} (at least {POSITIONAL:.0%})")
    return found
