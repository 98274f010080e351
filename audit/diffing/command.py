"""`unweave diff`: what changed between two models, from the command line."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from ...saes.cli import table

if TYPE_CHECKING:
    from .result import Diff

Name = Annotated[str, tyro.conf.Positional]
SHOWN = 10  # rows that are printed
COLUMNS = (
    "latent", "position", "string", "class", "is_found", "score", "d", "q", "norm_difference", "nu_eps", "nu_r", "density", "fires_on",
)  # fmt: skip


def diff(
    model_a: Name,
    model_b: Name,
    text: tuple[str, ...],
    out: Path,
    method: Literal["crosscoder", "mean", "stagewise", "lens"] = "crosscoder",
    site: str | None = None,
    site_b: str | None = None,
    dictionary: Path | None = None,
    latents: int | None = None,
    k: int | None = None,
    train_tokens: int | None = None,
    tokens: int = 200_000,
    context: int = 128,
    held_out: float = 0.3,
    fdr: float = 0.05,
    causal: int = 4,
    causal_tokens: int = 512,
    controls: int = 19,
    target: str | None = None,
    prompts: Path | None = None,
    alignment: Path | None = None,
    activations: Path | None = None,
    seed: int = 0,
    device: str | None = None,
) -> dict[str, Any]:
    """What changed between two models: latents that differ, tested, and whether they matter (two models + text → Diff).

    Args:
        model_a: The model as it was: a name that TransformerLens or the hub knows, a local folder, or smollm2-135m.
        model_b: The model that was tuned.
        text: Files or folders (.txt .md .py .jsonl, also .gz), or the word bundled for the text that comes along.
        out: Folder for the Diff.
        method: crosscoder (latents read from both), mean (mean activations under one dictionary), stagewise (a dictionary of the
            one trained on with the other), lens (the mean difference at the first tokens, read off the unembedding).
        site: Where to read, e.g. blocks.12.hook_resid_post; left out: after the middle block.
        site_b: Where to read the tuned model, if that is another place.
        dictionary: Folder of a dictionary of that site (mean, stagewise); left out: one is trained.
        latents: Latents of what is trained; left out: eight times the width, at most 4096.
        k: Latents that are active on a token; left out: 32, or fewer in a narrow dictionary.
        train_tokens: Tokens to train on, of which there may be more than of text; left out: twenty times the text, at most 2 million.
        tokens: Tokens of text to read at most.
        context: Tokens the models read together, BOS included.
        held_out: Share of the documents that is kept from training and measured on.
        fdr: Share of false discoveries to allow among what is found.
        causal: Of how many latents, the first in rank, to measure what patching and removing them does; 0: none.
        causal_tokens: About how many tokens to measure that on.
        controls: How many random latents of like density to compare with.
        target: One token whose logit is the behaviour, at the end of each prompt; left out: KL over all next tokens.
        prompts: A file with one prompt a line to measure behaviour on; left out: the text that is held out.
        alignment: JSON file {id of A: id of B} for models with different tokenizers.
        activations: Folder where the activations are kept; left out: within out. Share it between methods.
        seed: Seed of training, permutations, intervals and controls.
        device: Device of the models, e.g. cuda or cpu; left out: CUDA where there is one.
    """
    from ...saes import Dictionary, UserError, read_documents
    from ...saes.io import read_json
    from .run import diff as run

    if site_b and not site:
        raise UserError(f"expected --site with --site-b; got --site-b {site_b} alone; name the first model's site too")
    pairs = None if alignment is None else _pairs(read_json(alignment, "an alignment of token ids"))
    lines = None if prompts is None else _lines(prompts)
    given = {"latents": latents, "k": k, "tokens": train_tokens}
    found = run(
        model_a,
        model_b,
        read_documents(text),
        out,
        method,
        site=(site, site_b) if site and site_b else site,
        dictionary=None if dictionary is None else Dictionary.load(dictionary),
        config={name: value for name, value in given.items() if value is not None},
        tokens=tokens,
        context=context,
        held_out=held_out,
        fdr=fdr,
        causal=causal,
        causal_tokens=causal_tokens,
        controls=controls,
        target=target,
        prompts=None if lines is None else [line for line in lines if line.strip()],
        alignment=pairs,
        activations=activations,
        seed=seed,
        device=device,
    )
    return {
        "out": str(out),
        "method": method,
        "discoveries": found.discoveries,
        "latents": len(found),
        "rows": found.rows(SHOWN),
        "causal": found.causal,
        "notes": found.notes,
        "table": readable(found),
    }


def readable(found: Diff) -> list[str]:
    """The first rows and the causal scores as a person reads them."""
    rows = found.rows(SHOWN)
    for row in rows:
        row["fires_on"] = " ".join(map(repr, row.get("fires_on", [])[:3]))
        row["string"] = repr(row["string"]) if row.get("string") else ""
    named = (name for name in COLUMNS if any(row.get(name) not in (None, "") for row in rows))
    said = table(rows, tuple(named))
    for one in found.causal:
        which = ", ".join(map(str, one["latents"])) or "the whole activation"
        if one["patched"]["share"] is not None or one["removed"]["share"] is not None:
            said.append(f"{which}: patched into A {_share(one['patched'])}; removed from B {_share(one['removed'])}")
    return said


def _share(one: dict[str, Any]) -> str:
    """A share of the change with its interval, and the controls' range."""
    if one["share"] is None:
        return "none to tell"
    low, high = one["interval"] or (one["share"], one["share"])
    beside = f", controls {min(one['controls']):.3f} to {max(one['controls']):.3f}" if one["controls"] else ""
    return f"{one['share']:.3f} of the change [{low:.3f}, {high:.3f}]{beside}"


def _lines(file: Path) -> list[str]:
    """The lines of a text file; UserError for one that is no text."""
    from ...saes import UserError

    try:
        return file.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(
            f"expected prompts as UTF-8 text, one a line, in {file}; got other bytes; write them as UTF-8"
        ) from error


def _pairs(data: dict[str, Any]) -> dict[int, int]:
    """Token ids from a JSON object, whose keys are strings; UserError for anything else."""
    from ...saes import UserError

    try:
        return {int(a): b for a, b in data.items()}
    except ValueError as error:
        raise UserError(f"expected {{id of A: id of B}}, whole numbers; got {error}; mend the file") from error
