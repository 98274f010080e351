"""Workspace: what a session may look at, and nothing else.

Models, dictionaries, stores, diffs and documents are given when it is made. Tools name them by the names that they have here, so no
argument of a tool is ever a path or an address. `target` is the model under audit, `base` what it was made from, where that is known.

A dictionary may be of the base model and is then read in the target too: that is how a fine-tuned model is looked at. It must be of
one of the workspace's models, and say which site it reads.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ...circuits.parts import Part, parts
from ...saes import Dictionary, Document, FeatureStore, UserError, model_info
from ..diffing import Diff
from ..labels import LanguageModel
from .measures.baseline import Baseline, neutral, read_baseline
from .measures.meaning import Meanings, read_meanings
from .measures.norms import Norms, norms_of
from .untrusted import shown

NAMES = ("target", "base")


class Workspace:
    """What may be looked at. `turn` is held while a model runs: one heavy job at a time, over all sessions that share this."""

    def __init__(
        self,
        models: Mapping[str, Any],
        dictionaries: Mapping[str, Dictionary] | None = None,
        stores: Mapping[str, FeatureStore] | None = None,
        diffs: Mapping[str, Diff] | None = None,
        corpus: Iterable[Document | str] = (),
        judge: LanguageModel | None = None,
    ):
        """`models` has "target" and perhaps "base". UserError for other names, another shape of the base, a dictionary of neither."""
        self.models, self.judge = dict(models), judge
        self.dictionaries, self.stores, self.diffs = dict(dictionaries or {}), dict(stores or {}), dict(diffs or {})
        self.corpus = [_document(each, number) for number, each in enumerate(corpus)]
        self.turn: Any = threading.RLock()
        self._parts: dict[str, Part] = {}
        self._norms: dict[str, Norms] = {}
        self._baselines: dict[tuple[str, str], Baseline] = {}
        self._meanings: Meanings | None = None
        if "target" not in self.models or not set(self.models) <= set(NAMES):
            raise UserError(
                f'expected models {{"target": …, "base": …}}; got {", ".join(self.models) or "none"}; name the target'
            )
        shapes = {(int(model.cfg.d_model), int(model.cfg.n_layers)) for model in self.models.values()}
        if len(shapes) > 1:
            raise UserError(
                "expected a base of the target's width and depth, to read the same latents in both; "
                f"got {' and '.join(f'{width} x {depth}' for width, depth in sorted(shapes))}; leave the base out"
            )
        for name in (*self.dictionaries, *self.stores, *self.diffs):
            if not re.fullmatch(r"[\w .:/()@+-]{1,80}", name):
                raise UserError(f"expected names of letters, digits and . : / - _; got {name[:80]!r}; rename it")
        for found in self.diffs.values():
            found.check()
        known = {model_info(model).fingerprint for model in self.models.values()}
        for name, dictionary in self.dictionaries.items():
            sites = (*dictionary.config.site, *dictionary.config.sites_out)
            if not all(re.fullmatch(r"[\w.]{1,80}", site) for site in sites):
                raise UserError(
                    f"expected sites such as blocks.3.hook_resid_post; {name} has others; mend its cfg.json"
                )
            own = trained_on(dictionary)
            if own is not None and own not in known:
                raise UserError(
                    f"expected dictionaries of the target or the base; {name} is of another model; leave it out"
                )

    @staticmethod
    def open(
        paths: Sequence[str | Path],
        model: Any = None,
        base: Any = None,
        text: str | Path | Sequence[str | Path] = (),
        device: str | None = None,
        **more: Any,
    ) -> Workspace:
        """A workspace from folders: dictionaries, FeatureStores, Diffs, or a folder that holds such; see opening.py."""
        from .opening import open_workspace

        return open_workspace(paths, model, base, text, device, **more)

    def model(self, which: str = "target") -> Any:
        """The target or the base; UserError where there is no base."""
        if which not in self.models:
            raise UserError(f"expected a {which} model in this workspace; there is none; ask about the target alone")
        return self.models[which]

    @property
    def has_base(self) -> bool:
        """Whether the target can be compared with what it was made from."""
        return "base" in self.models

    def dictionary(self, name: str | None = None) -> str:
        """The name of a dictionary, left out: of the first one. UserError where there is none of that name."""
        known = ", ".join(self.dictionaries) or "none"
        if name is None and self.dictionaries:
            return next(iter(self.dictionaries))
        if name is None or name not in self.dictionaries:
            raise UserError(
                f"expected a dictionary of this workspace ({known}); got {name and name[:80]!r}; see list_models"
            )
        return name

    def part(self, name: str) -> Part:
        """A dictionary made ready for the target and the base alike; UserError for one that reads several sites."""
        if name not in self._parts:
            found = parts(self.dictionaries[name])
            if len(found) != 1:
                raise UserError(f"expected a dictionary that reads one site; {name} reads {len(found)}; name another")
            # Without its model's name, so that the base's dictionary can be read in the target.
            self._parts[name] = dataclasses.replace(found[0], model=None)
        return self._parts[name]

    def store(self, name: str) -> FeatureStore | None:
        """The FeatureStore that was collected with a dictionary, None where there is none."""
        own = self.dictionaries[name].fingerprint
        for store in self.stores.values():
            about = store.manifest.get("dictionary")
            if isinstance(about, dict) and about.get("fingerprint") == own:
                return store
        return None

    def norms(self, name: str) -> Norms:
        """What is usual for the latents of a dictionary: of its store, or else of the baseline text under the target."""
        if name not in self._norms:
            store = self.store(name)
            self._norms[name] = norms_of(store, None if store else self.baseline(name), self._read_in(store))
        return self._norms[name]

    def baseline(self, name: str, which: str = "target") -> Baseline:
        """The latents of a dictionary over the baseline text (the corpus, or the text that comes with the package), read once."""
        key = (name, which)
        if key not in self._baselines:
            self._baselines[key] = read_baseline(self.model(which), self.part(name), neutral(self.corpus))
        return self._baselines[key]

    def _read_in(self, store: FeatureStore | None) -> str:
        """Which model the norms of a dictionary were read in: the one that its store was collected with, else the target."""
        about = None if store is None else store.manifest.get("model")
        own = about.get("fingerprint") if isinstance(about, dict) else None
        known = {model_info(model).fingerprint: f"the {which}" for which, model in reversed(self.models.items())}
        return "the target" if store is None else known.get(str(own), "a model that is not here")

    def meanings(self) -> Meanings:
        """The corpus by meaning, as the target has it, read once."""
        if self._meanings is None:
            self._meanings = read_meanings(self.model(), self.corpus)
        return self._meanings

    def count(self, text: str) -> int:
        """Tokens of a text by the target's tokenizer, or a token for 3.5 characters where that is more."""
        tokenizer: Any = getattr(self.models["target"], "tokenizer", None)
        own = 0 if tokenizer is None else len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
        return max(own, -(-len(text) * 2 // 7))

    def fingerprints(self) -> dict[str, Any]:
        """Which models, dictionaries, stores (their labels too), diffs and documents these are; a transcript is replayed on the same."""
        return {
            "models": {name: model_info(model).fingerprint for name, model in self.models.items()},
            "dictionaries": {name: each.fingerprint for name, each in self.dictionaries.items()},
            "stores": {name: _hash([each.manifest, each.labels.rows()]) for name, each in self.stores.items()},
            "diffs": {name: _hash([each.manifest, _columns(each)]) for name, each in self.diffs.items()},
            "corpus": _hash([list(each) for each in self.corpus]) if self.corpus else None,
            "judge": None if self.judge is None else self.judge.name,
        }

    def manifest(self) -> dict[str, Any]:
        """What is here as plain data, text of others made visible: names, models, sites, sizes, and the fingerprints."""
        return {
            "models": {which: _about(model) for which, model in self.models.items()},
            "dictionaries": {
                name: {"reads": list(each.config.site), "writes": list(each.config.sites_out), "latents": each.config.latents,
                       "has_store": self.store(name) is not None}
                for name, each in self.dictionaries.items()
            },
            "diffs": {name: each.method for name, each in self.diffs.items()},
            "documents": len(self.corpus),
            "fingerprints": self.fingerprints(),
        }  # fmt: skip


def trained_on(dictionary: Dictionary) -> str | None:
    """The fingerprint of the model that a dictionary says it was trained on, None where it says none."""
    about = dictionary.metadata.get("model")
    return about.get("fingerprint") if isinstance(about, dict) else None


def _about(model: Any) -> dict[str, Any]:
    about = model_info(model).dict()
    return {name: shown(value, 120) if isinstance(value, str) else value for name, value in about.items()}


def _document(given: Document | str, number: int) -> Document:
    return Document(f"document {number}", "text", given) if isinstance(given, str) else given


def _columns(diff: Diff) -> dict[str, str]:
    found = {
        name: column.detach().cpu().contiguous().view(torch.uint8).numpy() for name, column in diff.columns.items()
    }
    return {name: hashlib.blake2b(column.tobytes(), digest_size=16).hexdigest() for name, column in found.items()}


def _hash(data: Any) -> str:
    text = json.dumps(data, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
