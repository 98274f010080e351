"""`unweave audit MODEL …`: an investigation by the script or by a language model, and `--replay` of one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from ...saes.cli import Result, tell

if TYPE_CHECKING:
    from ..tools import Workspace

MADE_WITH = "workspace.json"
PATIENCE_S = 600.0  # a model on this machine takes minutes to read the tools and a long conversation


def audit(
    model: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")] = None,
    base: str | None = None,
    dictionary: tuple[Path, ...] = (),
    store: tuple[Path, ...] = (),
    diff: tuple[Path, ...] = (),
    text: tuple[str, ...] = (),
    out: Path | None = None,
    resume: bool = False,
    replay: Path | None = None,
    endpoint: str | None = None,
    endpoint_model: str | None = None,
    turns: int = 40,
    calls: int | None = None,
    runs: int | None = None,
    tokens: int = 400_000,
    words: int = 8_192,
    seed: int = 0,
    device: str | None = None,
) -> Result:
    """Find what a model hides, by a script or with --endpoint a language model (also: audit --monitor, audit --scratchpad).

    Without --endpoint nothing is sent anywhere. What was called stands in OUT/transcript.jsonl, what was found in OUT/report.json and
    report.md; --replay OUT makes every call again and compares. With --monitor or --scratchpad the
    flags are those of the monitor (watch texts by latents or probes) or of the scratchpad (is the reasoning shown the reasoning used?).

    Args:
        model: The model under audit: a name that TransformerLens or the hub knows, a local folder, or smollm2-135m; left out: the
            one that the first dictionary or store names.
        base: The model that it was made from, to compare with; without it much less can be told.
        dictionary: Folders of dictionaries of either model.
        store: Folders of FeatureStores of these dictionaries.
        diff: Folders of Diffs of the two models.
        text: Files or folders to search (.txt .md .py .jsonl, also .gz), or the word bundled for the text that comes along.
        out: New folder for the transcript and the report.
        resume: Go on with the script's audit in --out that was interrupted, with the same flags; what was called is not called again.
        replay: Folder of an audit whose calls are made again, on the models and folders that it was made with.
        endpoint: Address of an OpenAI-compatible endpoint whose model is to investigate, e.g. http://localhost:8000/v1; the key is
            read from UNWEAVE_API_KEY.
        endpoint_model: Name of that model.
        turns: Messages that it has.
        calls: Calls of tools; left out: 400 for the script, 200 for an agent.
        runs: Model runs; left out: 16,000 for the script, 2,000 for an agent.
        tokens: Tokens of replies for the script; for an agent also tokens read and written in all.
        words: How many words of the vocabulary, from the commonest, the script tries as triggers.
        seed: Seed of every draw.
        device: Device of the models, e.g. cuda or cpu; left out: CUDA where there is one.
    """
    from ...saes import UserError

    if replay is not None:
        return replayed(replay, device)
    if out is None:
        raise UserError("expected --out for the transcript and the report; got none; name a new folder")
    if (endpoint is None) != (endpoint_model is None):
        raise UserError("expected --endpoint and --endpoint-model together; got one of them; give both, or none")
    made_with = {"model": model, "base": base, "text": list(text)}
    made_with["folders"] = [str(path.resolve()) for path in (*dictionary, *store, *diff)]
    if model is None and not made_with["folders"]:
        raise UserError("expected a model to audit; got none; name one, e.g. unweave audit smollm2-135m --out audit")
    if resume and endpoint is not None:
        raise UserError("expected --resume for the script; got --endpoint, whose conversation is not kept; begin anew")
    from ...saes.io import write_json
    from .investigation import check_new

    if not resume:
        check_new(out)
    workspace = opened(made_with, device)
    write_json(out / MADE_WITH, made_with)  # first: what is interrupted can be replayed too
    found = investigated(workspace, out, endpoint, endpoint_model, turns, (calls, runs, tokens), words, seed, resume)
    if found.stopped and not found.report.calls:
        raise UserError(f"expected an investigation; no tool was called: {found.stopped}")
    return {
        "out": str(out),
        "found": [each.statement for each in found.findings] or "nothing",
        "words": list(found.words),
        **({"stopped": found.stopped} if found.stopped else {}),
        "calls": found.report.calls,
        "spent": found.report.spent,
    }


def investigated(
    workspace: Workspace,
    out: Path,
    endpoint: str | None,
    endpoint_model: str | None,
    turns: int,
    limits: tuple[int | None, int | None, int],
    words: int,
    seed: int,
    resume: bool,
) -> Any:
    """By the endpoint's model where one was named, else by the script."""
    from ..labels import Endpoint
    from ..tools import Budget
    from .agent import agent
    from .asking import vocabulary
    from .auditor import BUDGET
    from .auditor import audit as script

    calls, runs, tokens = limits

    def allowed(plain: Budget) -> Budget:
        return Budget(plain.calls if calls is None else calls, plain.runs if runs is None else runs, tokens)

    if endpoint is None or endpoint_model is None:
        tried = vocabulary(workspace.model().tokenizer, words)
        return script(workspace, seed=seed, budget=allowed(BUDGET), out=out, words=tried, resume=resume, tell=tell)
    asked = Endpoint(endpoint, endpoint_model, seed=seed, timeout_s=PATIENCE_S)
    return agent(workspace, asked, turns=turns, tokens=tokens, seed=seed, budget=allowed(Budget()), out=out)


def opened(made_with: dict[str, Any], device: str | None) -> Workspace:
    """The workspace of some folders and model names."""
    from ..tools import Workspace

    names = {name: made_with[name] for name in ("model", "base", "text")}
    return Workspace.open(made_with["folders"], **names, device=device)


def replayed(folder: Path, device: str | None) -> Result:
    """Make every call of an audit again; UserError unless all replies are the same, and the differences are told."""
    from ...saes import UserError
    from ...saes.io import read_json
    from .investigation import TRANSCRIPT, replay

    if (folder / TRANSCRIPT).exists() and not (folder / MADE_WITH).exists():
        raise UserError(
            f"expected {MADE_WITH} in {folder}, which the command writes; this audit was made from Python; use replay(folder, workspace)"
        )
    made_with = read_json(folder / MADE_WITH, "what an audit was made with")
    if not {"model", "base", "folders", "text"} <= set(made_with):
        raise UserError(f"expected model, base, folders and text in {folder / MADE_WITH}; it is damaged; audit again")
    found = replay(folder, opened(made_with, device))
    if not found.equal:
        raise UserError(f"expected the replies of {folder}; {found}")
    return found.to_dict()
