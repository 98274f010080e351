"""Look: which models, dictionaries, stores, diffs and documents there are."""

from __future__ import annotations

from collections import Counter
from typing import Any

from ....circuits.prompts.text import has_chat
from ....saes import model_info
from ..answers import Answer
from ..registry import tool
from ..session import Session
from ..untrusted import untrusted
from ..workspace import trained_on

LISTED = 20


@tool("look")
def list_models(session: Session) -> Answer:
    """What can be looked at here: the target and base models, dictionaries (with their sites, latents, labels), diffs, and the corpus.

    Names given here are those that the other tools take. Runs no model; no claim can rest on it.
    """
    workspace = session.workspace
    kinds = Counter(each.kind for each in workspace.corpus)
    found = {
        "models": {name: _model(model) for name, model in workspace.models.items()},
        "dictionaries": [_dictionary(session, name) for name in list(workspace.dictionaries)[:LISTED]],
        "diffs": [
            {"diff": name, "method": each.method, "found": each.discoveries, "of": len(each)}
            for name, each in list(workspace.diffs.items())[:LISTED]
        ],
        "corpus": {"documents": len(workspace.corpus), "kinds": untrusted(", ".join(f"{kind} ×{n}" for kind, n in kinds.most_common(8)))},
        "judge": None if workspace.judge is None else untrusted(workspace.judge.name, 60),
    }  # fmt: skip
    return Answer(found, "dictionaries", session.about())


def _model(model: Any) -> dict[str, Any]:
    info = model_info(model)
    return {
        "name": untrusted(info.name, 80), "layers": info.n_layers, "width": info.d_model, "context": info.n_ctx, "vocabulary": info.d_vocab,
        "takes_messages": has_chat(model), "weights": info.fingerprint[:12],
    }  # fmt: skip


def _dictionary(session: Session, name: str) -> dict[str, Any]:
    dictionary, store = session.workspace.dictionaries[name], session.workspace.store(name)
    models = {model_info(model).fingerprint: which for which, model in session.workspace.models.items()}
    found: dict[str, Any] = {
        "dictionary": name, "reads": list(dictionary.config.site)[:4], "writes": list(dictionary.config.sites_out)[:4],
        "latents": dictionary.config.latents, "active_per_token": dictionary.config.k, "kind": dictionary.config.activation,
        "trained_on": models.get(str(trained_on(dictionary)), "not known"), "weights": dictionary.fingerprint[:12],
    }  # fmt: skip
    if store is not None:
        labels = sum(mark.label is not None for mark in store.labels.all().values())
        found["store"] = {
            "tokens": len(store.tokens),
            "silent": int((store.count == 0).sum()),
            "labelled": labels,
            "codes": store.codebook is not None,
        }
    return found
