"""`unweave mcp MODEL …`: the audit's tools for an agent that speaks the Model Context Protocol."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from ...saes.cli import Result

if TYPE_CHECKING:
    from ..tools import Session


def mcp(
    model: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")] = None,
    base: str | None = None,
    dictionary: tuple[Path, ...] = (),
    store: tuple[Path, ...] = (),
    diff: tuple[Path, ...] = (),
    text: tuple[str, ...] = (),
    seed: int = 0,
    calls: int = 200,
    runs: int = 2_000,
    tokens: int = 200_000,
    out: Path | None = None,
    resume: bool = False,
    http: bool = False,
    port: int = 0,
    device: str | None = None,
    schemas: bool = False,
) -> Result:
    """Offer the audit's tools to an agent: an MCP server over standard input and output, or with --http on this machine.

    Nothing but the protocol goes to standard output. Nothing is sent anywhere but to the client that connects. The agent can look at
    what is named here and at nothing else: no tool takes a path or an address.

    Args:
        model: The model under audit: a name that TransformerLens or the hub knows, a local folder, or smollm2-135m; left out: the
            one that the first dictionary or store names.
        base: The model that it was made from, to compare with.
        dictionary: Folders of dictionaries of either model.
        store: Folders of FeatureStores of these dictionaries.
        diff: Folders of Diffs of the two models.
        text: Files or folders to search (.txt .md .py .jsonl, also .gz), or the word bundled for the text that comes along.
        seed: Seed of every draw; the same calls then have the same replies.
        calls: Calls that the agent has; concluding is free.
        runs: Model runs that it has: a forward pass over a prompt is one, and so are 32 tokens written.
        tokens: Tokens of replies that it may read.
        out: Folder for transcript.jsonl and report.json; left out: nothing is kept.
        resume: Go on with the session in --out, begun with the same models, folders, texts and budget: its board, ids and costs stay.
        http: Serve streamable HTTP on 127.0.0.1 instead, under a random token.
        port: Port for --http; 0 takes a free one.
        device: Device of the models, e.g. cuda or cpu; left out: CUDA where there is one.
        schemas: Only tell the tools in the form of function calling (--json prints their schemas); loads nothing.
    """
    from ...saes import UserError

    if schemas:
        return _told()
    folders = (*dictionary, *store, *diff)
    if model is None and not folders:
        raise UserError("expected a model to audit; got none; name one, e.g. unweave mcp smollm2-135m")
    if port and not http:
        raise UserError(f"expected --http with --port; got --port {port} alone; add --http")
    if resume and out is None:
        raise UserError("expected --out with --resume; got none; name the folder of the session to go on with")
    if out is not None and not resume and (out / "transcript.jsonl").exists():
        raise UserError(
            f"expected a new folder for --out; {out / 'transcript.jsonl'} is there already; name another, or give --resume"
        )
    from .http import serve_http
    from .stdio import claim_streams, serve_stdio

    streams = None if http else claim_streams()
    session = _session(model, base, folders, text, seed, (calls, runs, tokens), out, resume, device)
    try:
        if streams is None:
            with contextlib.suppress(KeyboardInterrupt):
                serve_http(session, port)
        else:
            print("MCP over standard input and output is ready (Ctrl-C ends it)", file=sys.stderr, flush=True)
            serve_stdio(session, streams)
    finally:
        if out is not None:
            session.report().save(out / "report.json")
    return {"calls": len(session.results), "left": session.spending.left(), **({"out": str(out)} if out else {})}


def _session(
    model: str | None,
    base: str | None,
    folders: tuple[Path, ...],
    text: tuple[str, ...],
    seed: int,
    budget: tuple[int, int, int],
    out: Path | None,
    resume: bool,
    device: str | None,
) -> Session:
    from ..tools import Budget, Session, Workspace

    allowed = Budget(*budget)
    workspace = Workspace.open(folders, model=model, base=base, text=text, device=device)
    session = Session(workspace, seed, allowed, None if out is None else out / "transcript.jsonl", resume=resume)
    session.catch_up()
    return session


def _told() -> Result:
    from ...saes.cli import table
    from ..tools import TOOLS
    from ..tools import schemas as every
    from .words import sentence

    rows = [
        {"tool": each.name, "group": each.group, "runs": each.cost, "what": sentence(each.description)}
        for each in TOOLS.values()
    ]
    return {"schemas": every(), "table": table(rows, ("tool", "group", "runs", "what"))}
