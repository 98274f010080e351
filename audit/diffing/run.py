"""What changed between two models? `diff` reads both on the same text, ranks what differs, and tests whether it matters.

Steps, in the order of the code: check that the two can be compared; activations of A, then of B, over the same rows (pair.py);
the method (crosscoder.py, mean.py, stagewise.py, lens.py); the tokens that the first latents fire on; the causal score of the
first few (causal.py); the folder (result.py).

What is trained here learns from the documents that are not held out, and everything is measured on those that are, so that no number
tells how well training memorised. A dictionary that was given is measured on all of the text for the mean, which should not be the text
that it was trained on. The lens trains nothing and reads all of it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool
from torch import Tensor

from ...saes import Dictionary, TrainConfig, UserError
from ...saes.errors import check_seed
from ...saes.joined import JoinedShards
from ...saes.rows import held_out_rows
from .crosscoder import Columns, compared
from .lens import difference_lens
from .mean import changed_means
from .pair import SIDES, Alignment, Models, read_pair
from .prepare import about_tokens, both_sites, checked, config_for, foreign, scores, target_id, trained, with_sites
from .reading import Reading, of_crosscoder, of_one
from .result import Diff
from .shape import METHODS
from .stagewise import halves, rotated, train_from, trained_on


class Job(NamedTuple):
    """What a method works on: two models, their activations, which rows are kept from training, which are measured, and settings."""

    models: Models
    shards: JoinedShards
    is_held_out: Bool[Tensor, "row"]
    is_measured: Bool[Tensor, "row"]
    dictionary: Dictionary | None
    config: TrainConfig
    out: Path
    fdr: float
    seed: int
    progress: bool


class Found(NamedTuple):
    """What a method gives: its columns, how its latents write (None: the lens), what to note, and dictionaries by name."""

    columns: Columns
    reading: Reading | None
    notes: list[str]
    dictionaries: dict[str, Dictionary]


def diff(
    model_a: Any,
    model_b: Any,
    texts: Iterable[Any],
    out: str | Path,
    method: str = "crosscoder",
    *,
    site: str | tuple[str, str] | None = None,
    dictionary: Dictionary | None = None,
    config: TrainConfig | Mapping[str, Any] | None = None,
    tokens: int = 200_000,
    context: int = 128,
    batch: int = 8,
    held_out: float = 0.3,
    fdr: float = 0.05,
    causal: int = 4,
    causal_tokens: int = 512,
    controls: int = 19,
    target: int | str | None = None,
    prompts: Sequence[str] | None = None,
    alignment: Alignment | None = None,
    activations: str | Path | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
    progress: bool = True,
) -> Diff:
    """What `model_b` (tuned) does beyond `model_a` (as it was), by one method; written to `out` and returned.

    Models are bridges or names (a name is loaded when it is wanted). `texts`: strings or Documents, of which at most `tokens` tokens are
    read in blocks of `context`. `site` is one for both, or A's and B's; left out, the residual stream after the middle block.
    `dictionary` (mean, stagewise) is one that reads and writes that site; left out, one is trained. `config` is how the crosscoder or the
    dictionary is trained: all of it, or the fields that are to differ from what suits the text. `held_out` is the share of documents that
    everything is measured on, `fdr` the false-discovery rate. The first `causal` latents get a causal score on about `causal_tokens`
    tokens against `controls` controls (0: none); with `target`, a token or its id, on that token's logit at the end of each of
    `prompts` (left out: of the blocks of the text) instead of KL. `alignment` {id of A: id of B} compares models with different
    tokenizers. Activations are kept in `activations` (left out: within `out`), where other methods find them again.

    Raises UserError for models that do not read the same tokens, streams of different widths (but for the crosscoder), unknown sites and
    methods, and text that is too short.
    """
    _check_settings(method, fdr, held_out, causal, controls, seed)
    out, texts = Path(out), _checked_texts(texts)
    if len(texts) < 2:
        raise UserError(f"expected two texts or more, since documents are what is counted; got {len(texts)}; give more")
    models = Models(model_a, model_b, alignment, device)
    _check_widths(models, method)
    sites, behaviour = both_sites(models, site), target_id(models, target)
    where, how = activations or out / "activations", {"context": context, "batch": batch, "progress": progress}
    shards = read_pair(models, texts, sites, where, tokens, **how)
    config = dataclasses.replace(config_for(shards, config), held_out=held_out, seed=seed)
    learns_nothing = method == "lens" or (method == "mean" and dictionary is not None)
    is_held_out, is_measured = _sides(shards, held_out, learns_nothing)
    job = Job(models, shards, is_held_out, is_measured, dictionary, config, out, fdr, seed, progress)
    found = BY_METHOD[method](job)
    settings = {
        "fdr": fdr, "held_out": held_out, "seed": seed, "context": context, "causal_tokens": causal_tokens,
        "controls": controls, "target": target, "is_dictionary_given": dictionary is not None, "train": config.to_dict(),
    }  # fmt: skip
    manifest = {
        "method": method,
        **_about(job, sites, found),
        "is_aligned": alignment is not None,
        "settings": settings,
    }
    result = Diff(manifest, found.columns)
    manifest |= about_tokens(models, shards, is_measured, result, found.reading)
    if causal and found.reading is not None:
        measured = (shards, is_measured, prompts, context, causal_tokens)
        scored, why_not = scores(models, sites, found.reading, result, measured, causal, controls, behaviour, seed)
        manifest |= {"causal": scored, "notes": [*found.notes, *why_not]}
    return result.save(out)


def _checked_texts(texts: Iterable[Any]) -> list[Any]:
    """All of them; UserError for what is no text, and for one text, whose letters would pass for many."""
    is_one = isinstance(texts, str | bytes)
    found = [texts] if is_one else list(texts)
    wrong = [each for each in found if is_one or not isinstance(getattr(each, "text", each), str)]
    if wrong:
        raise UserError(f"expected a list of texts or Documents; got {type(wrong[0]).__name__}; give strings in a list")
    return found


def _check_settings(method: str, fdr: float, held_out: float, causal: int, controls: int, seed: int) -> None:
    if method not in METHODS:
        raise UserError(f"expected a method ({', '.join(METHODS)}); got {method!r}; choose one")
    if not 0 < fdr < 1 or not 0 < held_out < 1 or min(causal, controls) < 0:
        raise UserError(
            f"expected fdr and held_out within (0, 1), causal and controls of 0 or more; got {fdr}, {held_out}, {causal}, {controls}"
        )
    check_seed(seed)


def _check_widths(models: Models, method: str) -> None:
    if method != "crosscoder" and not models.is_same_width:
        raise UserError(
            f"expected models of one width for {method}; got {models.info('a').d_model} and {models.info('b').d_model}; "
            "use --method crosscoder"
        )


def _sides(
    shards: JoinedShards, held_out: float, learns_nothing: bool
) -> tuple[Bool[Tensor, "row"], Bool[Tensor, "row"]]:
    """Rows that training does not see, and rows that are measured: those, or all where nothing is trained."""
    is_held_out = held_out_rows(shards, held_out)
    if not bool(is_held_out.any()) or bool(is_held_out.all()):
        read = len(shards.documents.unique())
        raise UserError(f"expected documents on both sides of held_out={held_out}; got {read} in all; give more text")
    return is_held_out, torch.ones_like(is_held_out) if learns_nothing else is_held_out


def _about(job: Job, sites: tuple[str, str], found: Found) -> dict[str, Any]:
    """The manifest's facts of models, text and dictionaries, and the method's notes."""
    shards = job.shards
    return {
        "models": {side: job.models.info(side).dict() for side in SIDES},
        "sites": dict(zip(SIDES, sites, strict=True)),
        "text": {
            **(shards.manifest.get("text") or {}),
            "rows": len(shards),
            "documents": len(shards.documents.unique()),
            "documents_measured": len(shards.documents[job.is_measured].unique()),
            "shards": {side: part.fingerprint for side, part in shards.parts.items()},
        },
        "dictionaries": {name: one.fingerprint for name, one in found.dictionaries.items()},
        "notes": found.notes,
    }


def by_lens(job: Job) -> Found:
    """The mean difference at the first tokens, read off B's unembedding."""
    return Found(difference_lens(job.models.get("b"), job.shards, seed=job.seed, fdr=job.fdr), None, [], {})


def by_crosscoder(job: Job) -> Found:
    """A BatchTopK crosscoder on both models."""
    config = with_sites(job.config, tuple(job.shards.sites), "batch_topk")
    own = trained(config, job.shards, job.out / "crosscoder", job.progress)
    notes: list[str] = []
    if not job.models.is_same_width:
        notes.append(
            "The models have different widths: classes come from the decoders' lengths alone, nothing was tested or patched."
        )
    columns = compared(own, job.shards, job.is_measured, job.seed, job.fdr)
    return Found(columns, of_crosscoder(own), notes, {"crosscoder": own})


def by_mean(job: Job) -> Found:
    """Mean activations under the dictionary that was given, or one trained on A."""
    if job.dictionary is None:
        notes: list[str] = []
        of_a = job.shards.parts["a"]  # a dictionary of A, which others can read A with
        own = trained(with_sites(job.config, tuple(of_a.sites)), of_a, job.out / "dictionary", job.progress)
    else:
        own, notes = checked(job.dictionary, job.models, job.shards), foreign(job.dictionary, job.models)
    reading = of_one(own)
    return Found(
        changed_means(reading, job.shards, job.is_measured, job.seed, job.fdr), reading, notes, {"dictionary": own}
    )


def by_stagewise(job: Job) -> Found:
    """The dictionary that was given, or one trained on half of A's text, trained on with each model's other half."""
    first, second = halves(job.shards, ~job.is_held_out, job.seed)
    if job.dictionary is None:
        notes: list[str] = []
        of_a = job.shards.parts["a"]
        own = train_from(with_sites(job.config, tuple(of_a.sites)), of_a, first, progress=job.progress)
        own.save(job.out / "dictionary")
    else:
        own, notes = checked(job.dictionary, job.models, job.shards), foreign(job.dictionary, job.models)
    control, tuned = trained_on(own, job.config, job.shards, second, job.progress)
    columns, reading = rotated(own, control, tuned, job.shards, job.is_measured, job.seed, job.fdr)
    control.save(job.out / "control")
    tuned.save(job.out / "tuned")
    return Found(columns, reading, notes, {"dictionary": own, "control": control, "tuned": tuned})


BY_METHOD = {"crosscoder": by_crosscoder, "mean": by_mean, "stagewise": by_stagewise, "lens": by_lens}
