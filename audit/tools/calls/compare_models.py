"""Compare the models: which latents changed between the base and the target, by a Diff that was made, or by a quick look at means."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch

from ....saes import UserError
from ...diffing import Diff
from ...diffing.mean import tested
from ..answers import Answer
from ..fields import Name, Rows, Short
from ..measures.describe import kept, rows_of
from ..measures.quick_lens import quick_lens
from ..measures.readings import Reading, in_all, usual_of
from ..registry import Refused, tool
from ..session import Session
from ..untrusted import token, tokens, untrusted

LENS_RUNS, FDR = 16, 0.05
COLUMNS = (
    "score",
    "change",
    "d",
    "d_low",
    "d_high",
    "p",
    "q",
    "norm_difference",
    "nu_r",
    "nu_eps",
    "cosine",
    "rotation",
    "mean_a",
    "mean_b",
    "density",
)
LENS = ("position", "score", "p", "q", "length", "random_high")


def _is_quick(session: Session, given: Mapping[str, Any]) -> bool:
    return given["diff"] is None and (given["quick"] or not session.workspace.diffs)


def _price(session: Session, arguments: Mapping[str, Any]) -> int:
    return LENS_RUNS if _is_quick(session, arguments) and arguments["method"] == "lens" else 0


def _reads(session: Session, given: Mapping[str, Any]) -> list[Reading]:
    """By means: ordinary text in both models. Of a Diff: what its latents are told by."""
    if _is_quick(session, given):
        return [] if given["method"] == "lens" else in_all(session, given)
    own = _dictionary_of(session, _chosen(session, given["diff"], given["method"])[1])
    return [] if own is None else usual_of(session.workspace, own)


@tool("compare", cost=0, price=_price, reads=_reads)
def diff_features(
    session: Session,
    diff: Name | None = None,
    method: Literal["any", "crosscoder", "mean", "stagewise", "lens"] = "any",
    by: Short = "score",
    k: Rows = 10,
    quick: bool = False,
    dictionary: Name | None = None,
    exclude_dense: bool = True,
) -> Answer:
    """The latents that differ most between base and target, with effect sizes, false-discovery q and, where measured, causal scores.

    Takes a Diff of the workspace (see list_models), or else compares mean activations of a dictionary's latents on ordinary text in
    both models. `found` counts discoveries at the stated rate; what is listed below them is what chance gives. Of a lens, `q` is of the
    position and `p` of the token. Of a causal score, `patched` is the share of the change of behaviour that the latents reproduce
    in the base, `removed` what goes away without them.

    Args:
        diff: Name of a Diff; left out, the first of the method.
        method: Of a Diff: crosscoder, mean, stagewise or lens (the lens lists tokens, no latents).
        by: The column to rank by, such as score, d or q.
        k: How many rows.
        quick: Compare now, though there is a Diff: means of latents, or with method lens the first tokens of ordinary text, which needs no
            dictionary.
        dictionary: For the quick comparison: name from list_models; left out, the first.
        exclude_dense: Leave out latents that fire almost everywhere.
    """
    if _is_quick(session, {"diff": diff, "quick": quick}):
        if method == "lens":
            return quick_lens(session, k)
        return _quick(session, session.workspace.dictionary(dictionary), by, k, exclude_dense)
    name, chosen = _chosen(session, diff, method)
    # A Diff is a file that anybody may have written: of its names and settings only what we know is told.
    columns = [each for each in dict.fromkeys((*COLUMNS, *LENS)) if each in chosen.columns]
    if by not in columns:
        raise Refused(f"expected a column ({', '.join(columns)}) to rank by; got another; choose one", field="by")
    order, rows = chosen.order(by), chosen.rows(10 * k, by)
    settings = chosen.manifest.get("settings") or {}
    own = _dictionary_of(session, chosen)
    result: dict[str, Any] = {
        "diff": name,
        "method": chosen.method,
        "by": by,
        "found": chosen.discoveries,
        "of": len(chosen),
        "fdr": settings.get("fdr"),
        "notes": [untrusted(each) for each in chosen.notes[:5]],
    }
    if chosen.method == "lens":
        listed = [_lens_row(row) for row in rows[:k]]
        return Answer(result | {"rows": listed}, "rows", session.about())
    numbers = {row["latent"]: _row(row) for row in rows}
    if own is None:
        listed = [{"latent": row["latent"], **numbers[row["latent"]]} for row in rows[:k]]
    else:
        listed = rows_of(session, own, kept(session, own, order[: 10 * k], k, exclude_dense), numbers)
    result["causal"] = [_causal(each) for each in chosen.causal[:4]]
    return Answer(result | {"features": listed}, "features", session.about(own))


def _chosen(session: Session, name: str | None, method: str) -> tuple[str, Diff]:
    diffs = session.workspace.diffs
    fitting = [each for each, found in diffs.items() if method in ("any", found.method)]
    if name is None and fitting:
        name = fitting[0]
    if name is None or name not in diffs:
        said = ", ".join(f"{each} ({found.method})" for each, found in diffs.items()) or "none"
        raise UserError(f"expected a Diff of this workspace ({said}); got {name or method!r}; or ask with quick")
    return name, diffs[name]


def _dictionary_of(session: Session, diff: Diff) -> str | None:
    """The workspace's dictionary whose latents a Diff is of, None where it has none such."""
    known = set((diff.manifest.get("dictionaries") or {}).values())
    for name, dictionary in session.workspace.dictionaries.items():
        if dictionary.fingerprint in known and dictionary.config.latents == len(diff) and dictionary.is_single:
            return name
    return None


def _row(row: Mapping[str, Any]) -> dict[str, Any]:
    found = {name: row[name] for name in COLUMNS if row.get(name) is not None and name != "density"}
    found["found"] = row["is_found"]
    if "class" in row:
        found["class"] = row["class"]
    if fires := row.get("fires_on"):
        found["fires_on"] = tokens(fires[:5])
    return found


def _lens_row(row: Mapping[str, Any]) -> dict[str, Any]:
    found = {name: row[name] for name in LENS if row.get(name) is not None}
    return {"token": untrusted(token(row["string"] or "")), **found, "found": row["is_found"]}


def _causal(score: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {"latents": score["latents"][:20] or "the whole activation"}
    for side in ("patched", "removed"):
        share = score[side]
        found[side] = {name: share.get(name) for name in ("share", "interval", "p")}
        found[side]["largest_control"] = max(share.get("controls") or [], default=None)
    return found


def _quick(session: Session, name: str, by: str, k: int, exclude_dense: bool) -> Answer:
    """Means of each latent over each baseline document, in the base (a) and in the target (b)."""
    if not session.workspace.has_base:
        raise UserError(
            "expected a base model or a Diff to compare with; this workspace has neither; compare texts instead"
        )
    part = session.workspace.part(name)
    a, b = (session.workspace.baseline(name, which) for which in ("base", "target"))
    if not torch.equal(a.tokens, b.tokens):
        raise UserError(
            "expected models that read the same text alike; their tokenizers differ; make a Diff with an alignment"
        )
    lengths = next(iter(part.W_dec.values())).detach().double().norm(dim=1).cpu()
    columns = tested(
        a.document_means(), b.document_means(), lengths, session.workspace.norms(name).density, session.seed, FDR
    )
    if by not in columns:
        raise Refused(f"expected a column ({', '.join(columns)}) to rank by; got another; choose one", field="by")
    manifest = {"method": "mean", "settings": {"fdr": FDR}}
    whole = Diff(manifest, columns)
    numbers = {row["latent"]: _row(row) for row in whole.rows(10 * k, by)}
    listed = kept(session, name, list(numbers), k, exclude_dense)
    result = {
        "diff": None, "method": "mean", "by": by, "found": whole.discoveries, "of": len(whole), "fdr": FDR, "documents": a.texts,
        "tokens": len(a), "dense_left_out": listed.dense, "features": rows_of(session, name, listed, numbers),
    }  # fmt: skip
    return Answer(result, "features", session.about(name), session.seed)
