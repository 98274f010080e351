"""`unweave label STORE …`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from ...saes.cli import Folder, Result


def label(
    store: Folder,
    latents: tuple[int, ...] = (),
    number: int = 50,
    explainer: Literal["heuristic", "model"] = "heuristic",
    judge: Literal["machine", "model"] | None = None,
    url: str | None = None,
    model: str | None = None,
    key_variable: str = "UNWEAVE_API_KEY",
    logprobs: bool = False,
    at_once: int = 4,
    timeout_s: float = 60.0,
    out: Path | None = None,
    examples: int = 20,
    least: int = 8,
    seed: int = 0,
    write: bool = True,
    device: str | None = None,
) -> Result:
    """Explain latents, and score each explanation on documents that it was not made from (FeatureStore → labels).

    Nothing is sent anywhere unless --url is given. A person's label is never replaced. An interrupted run goes on when it is repeated.

    Args:
        store: Folder of a FeatureStore whose codes were kept.
        latents: Latents to explain; left out: --number of those that fire.
        number: How many latents to draw.
        explainer: heuristic needs no language model; model asks the one that --model names.
        judge: machine judges the clauses of the heuristic; model asks. Left out: machine for heuristic, model for model.
        url: Base URL of an endpoint that speaks OpenAI's chat completions, e.g. http://localhost:8000/v1; left out, --model is
            loaded here.
        model: Name of the model at the endpoint, or of a model to load here, e.g. smollm2-135m.
        key_variable: Environment variable that holds the endpoint's key; it is never written anywhere.
        logprobs: Read probabilities from the endpoint instead of text (one request a snippet).
        at_once: Requests together.
        timeout_s: Seconds a request may take.
        out: Folder for records.jsonl and the endpoint's answers; left out: one in the store's folder.
        examples: Positives, and negatives of each kind, to score on.
        least: Places below which a latent is reported as having too few.
        seed: Seed of the split of the documents and of every draw.
        write: Put the labels with their scores into the store.
        device: Device of a model that is loaded here.
    """
    from ...saes import FeatureStore, UserError, load_model
    from .client import LocalModel
    from .endpoint import Endpoint
    from .labelling import label as run
    from .snippets import Draws

    judged_by = judge or ("machine" if explainer == "heuristic" else "model")
    asks = "model" in (explainer, judged_by)
    if asks and model is None:
        raise UserError("expected --model, the language model to ask; got none; name one, or use --explainer heuristic")
    if explainer == "model" and judged_by == "machine":
        raise UserError(
            "expected --judge model with --explainer model; got machine, which can judge only its own clauses; leave --judge out"
        )
    if not asks and (url or model):
        raise UserError("expected no --url and no --model with the heuristic alone; drop them, or add --judge model")
    opened = FeatureStore.open(store)
    asked = None
    if asks and url:
        answers = (out or opened.folder / "labels-answers") / "answers"
        asked = Endpoint(
            url, str(model), key_variable=key_variable, cache=answers, logprobs=logprobs, at_once=at_once,
            timeout_s=timeout_s, seed=seed,
        )  # fmt: skip
    elif asks:
        asked = LocalModel(load_model(str(model), device))
    found = run(
        opened,
        latents or None,
        out,
        number=number,
        draws=Draws(max(80, examples), examples, examples, least, seed),
        explainer=asked if explainer == "model" else None,
        judge=asked if judged_by == "model" else None,
        write=write,
    )
    return {**found.to_dict(), "table": str(found).splitlines()}
