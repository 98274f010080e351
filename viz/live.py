"""What a live host works with: the open things, and the models and dictionaries behind them, loaded when first needed.

Every method that runs a model waits for its turn (turns.py): one job at a time, a few waiting, the rest are told that it is busy.
`generate` takes a turn for each token, so that others come in between, and ends when its iterator is closed. What the page sends
is checked here (fields.py); what it gets is JSON with visible strings (live_answers.py). A store or graph whose model or dictionary
cannot be found is a UserError that says what to do (finding.py).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from jaxtyping import Int
from torch import Tensor

from ..circuits import Graph, QKTable, qk_table
from ..circuits.experiment.edits import Catalogue
from ..circuits.parts import parts
from ..circuits.prompts.rank import RANKS, rank_features
from ..circuits.prompts.selection import validate_nodes
from ..circuits.prompts.steering import steer_prompt
from ..circuits.prompts.stream import stream
from ..circuits.prompts.text import has_chat, prompt_ids
from ..circuits.prompts.through import encode_prompt
from ..circuits.prompts.wishes import latent_edits
from ..saes import Dictionary, FeatureStore
from ..saes.errors import UserError
from ..saes.models import load_model, model_info
from . import fields
from .answers.registry import nth
from .finding import (
    check_weights,
    folders_of,
    model_name,
    open_dictionary,
    open_parts,
    places_of,
    reference_of,
    references_of,
)
from .live_answers import effects_answer, features_answer, piece_answer, steer_answer
from .things import Things
from .turns import Turns

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

    from .fields import Body

MODELS, DICTIONARIES = 2, 8  # kept in memory at most; the one used longest ago goes first
STREAMS = 4  # texts that are being written at once
LATENTS = 20_000  # that one answer names, best first
CONTROLS, TOP = 32, 512
SEED = 2**31


class Live:
    """The open things, for actions. `model`: a loaded bridge, or a name, instead of the one that a store names.

    `dictionaries`: loaded ones (Dictionary or Part), which are known by their fingerprints. `lock` is the queue of jobs: a
    context manager, not re-entrant; `model_for` and `dictionary_for` do not take it.
    """

    def __init__(self, things: Things, model: Any = None, dictionaries: Sequence[Any] = ()):
        self.things, self.model, self.dictionaries = things, model, list(dictionaries)
        self.lock = Turns()
        self._loading, self._counting = threading.RLock(), threading.Lock()
        self._models: dict[str, Any] = {}
        self._opened: dict[str, Dictionary] = {}
        self._parts: tuple[Graph, list[Any]] | None = None
        self._streams = 0

    def store(self, place: Any) -> FeatureStore:
        """The store at a place; KeyError where there is none."""
        return nth(list(self.things.stores.values()), _place(place))

    def graph(self, place: Any) -> Graph:
        """The graph at a place; KeyError where there is none."""
        return nth(list(self.things.graphs.values()), _place(place))

    def abilities(self) -> set[str]:
        """Names of the actions and streams that can be done here; nothing is loaded to find out."""
        able = {"label", "history", "search"}
        if self.things.stores:
            able.add("map")
        if len(self.things.stores) > 1:
            able.add("match")
        if self.things.graphs:
            able.add("view")
        if any(
            self._has_dictionary(store) and self._has_model(store.manifest) for store in self.things.stores.values()
        ):
            able |= {"features", "fires", "steer", "generate", "effects"}
        if any(self._has_parts(graph) and self._has_model(graph.metadata) for graph in self.things.graphs.values()):
            able |= {"validate", "qk"}
        return able

    def _has_model(self, metadata: Any) -> bool:
        return self.model is not None or model_name(metadata) is not None

    def _has_dictionary(self, store: FeatureStore) -> bool:
        return self._given(reference_of(store).get("fingerprint")) is not None or bool(places_of(self.things, store))

    def _has_parts(self, graph: Graph) -> bool:
        wanted = references_of(graph)
        known = all(self._given(about.get("fingerprint")) is not None for about in wanted)
        return "targets" in graph.metadata and (known or bool(folders_of(self.things, graph)))

    def _given(self, fingerprint: Any) -> Any:
        """A dictionary that was given or loaded before."""
        known = [*self.dictionaries, *self._opened.values()]
        return next((each for each in known if each.fingerprint == fingerprint), None)

    def model_for(self, thing: FeatureStore | Graph) -> TransformerBridge:
        """The model that a store or graph was made with, loaded at the first call; UserError when it cannot be had or has other weights."""
        metadata = thing.manifest if isinstance(thing, FeatureStore) else thing.metadata
        with self._loading:
            model = self.model if self.model is not None and not isinstance(self.model, str) else self._loaded(metadata)
            check_weights(metadata, model_info(model))
        return model

    def _loaded(self, metadata: Any) -> TransformerBridge:
        name = self.model or model_name(metadata)
        if name is None:
            raise UserError(
                "expected a store or graph that names its model; this one does not; give it: show(…, model=model)"
            )
        if name not in self._models:
            self._models[name] = load_model(name)
        self._models[name] = self._models.pop(name)
        _forget(self._models, MODELS)
        return self._models[name]

    def dictionary_for(self, store: FeatureStore) -> Dictionary:
        """The dictionary that a store was collected with, found by its fingerprint; UserError with the remedy when it is nowhere."""
        fingerprint = str(reference_of(store).get("fingerprint"))
        with self._loading:
            found = self._given(fingerprint)
            if found is None:
                found = open_dictionary(self.things, store)
            if found not in self.dictionaries:
                self._opened.pop(fingerprint, None)
                self._opened[fingerprint] = found
                _forget(self._opened, DICTIONARIES)
        return found

    def parts_for(self, graph: Graph) -> list[Any]:
        """The dictionaries that a graph was traced with; UserError naming those that are nowhere."""
        with self._loading:
            if self._parts is None or self._parts[0] is not graph:
                self._parts = graph, open_parts(self.things, graph, [*self.dictionaries, *self._opened.values()])
            return self._parts[1]

    def features(self, body: Body) -> dict[str, Any]:
        """{store, text | messages, rank, target, top}: what fires on every token, what is unusual, what moves the target."""
        store, prompt = self.store(body.get("store")), fields.prompt_of(body)
        rank, target, top = (
            fields.choice(body, "rank", RANKS),
            fields.target_of(body),
            fields.whole(body, "top", 64, 1, TOP),
        )
        with self.lock:
            model, dictionary = self._pair(store)
            ids = _ids(model, prompt)
            found = rank_features(model, dictionary, ids, store=store, rank=rank, target=target, top=len(store))
            return features_answer(found, top, has_chat(model))

    def steer(self, body: Body) -> dict[str, Any]:
        """{store, text | messages, edits, target, controls, latents, seed}: what edits do, attention frozen and free, beside controls."""
        store, prompt = self.store(body.get("store")), fields.prompt_of(body)
        wishes, target, seed = fields.wishes_of(body), fields.target_of(body), fields.whole(body, "seed", 0, 0, SEED)
        controls = fields.whole(body, "controls", 8, 0, CONTROLS)
        latents = fields.whole(body, "latents", controls, 0, CONTROLS)
        with self.lock:
            model, dictionary = self._pair(store)
            ids = _ids(model, prompt)
            edits = latent_edits(model, dictionary, ids, wishes)
            found = steer_prompt(
                model, ids, edits, dictionary, target=target, controls=controls, latents=latents, seed=seed, top=12
            )
            return steer_answer(found)

    def generate(self, body: Body) -> Iterator[dict[str, Any]]:
        """{store, text | messages, edits, tokens, temperature, seed, attention}: a line for each token, then {done: True}.

        Without edits only the unmodified model writes; with them both do, in turns. What is wrong with the body is said at once.
        """
        store, prompt, wishes = self.store(body.get("store")), fields.prompt_of(body), fields.wishes_of(body)
        options = {
            "tokens": fields.whole(body, "tokens", 40, 1, 500),
            "temperature": fields.real(body, "temperature", 0.0, 0.0, 10.0),
            "seed": fields.whole(body, "seed", 0, 0, SEED),
            "freeze_attention": fields.choice(body, "attention", ("free", "frozen")) == "frozen",
            "runs": ("base", "changed") if wishes else ("base",),
        }

        def start() -> Iterator[Any]:
            model, dictionary = self._pair(store)
            ids = _ids(model, prompt)
            return stream(model, ids, latent_edits(model, dictionary, ids, wishes), dictionary, **options)

        return self._written(start)

    def _written(self, start: Any) -> Iterator[dict[str, Any]]:
        with self._counting:
            if self._streams >= STREAMS:
                raise UserError(f"busy: expected at most {STREAMS} texts to be written at once; so many are; stop one")
            self._streams += 1
        try:
            with self.lock:
                pieces = start()
            while True:
                with self.lock.next():
                    piece = next(pieces, None)
                if piece is None:
                    break
                yield piece_answer(piece)
            yield {"done": True}
        finally:
            with self._counting:
                self._streams -= 1

    def fires(self, place: Any, text: Any) -> dict[str, Any]:
        """The latents of a store that fire on a text, by the share of their largest corpus value that they reach."""
        from ..saes.latents.find.search import rank_firing

        store, text = self.store(place), fields.text_of({"text": text})
        with self.lock:
            model, dictionary = self._pair(store)
            ids = _ids(model, text)
            codes, kept = encode_prompt(Catalogue(model, dictionary), parts(dictionary)[0], ids)
        latents = rank_firing(codes, kept, relative_to=store.max_value)
        why = (
            f"fires on the text ({len(ids)} tokens, of which the dictionary answers for {int(kept.sum())}); "
            "by value as a share of the largest in the corpus"
        )
        return {"latents": latents[:LATENTS].tolist(), "total": len(latents), "why": why}

    def effects(self, body: Body) -> dict[str, Any]:
        """{store, latent, rows}: what the model loses at each shown token of the examples when the latent is taken away."""
        from ..saes.latents.effect.effects import effects

        store = self.store(body.get("store"))
        latent, rows = fields.whole(body, "latent", None, 0, len(store) - 1), fields.rows_of(body, len(store.tokens))
        with self.lock:
            model, dictionary = self._pair(store)
            return effects_answer(effects(store, latent, model, dictionary, rows))

    def validate(self, place: Any, nodes: Sequence[int], seed: int = 0) -> dict[str, Any]:
        """Ablate features of a graph in its model, alone and together, beside matched controls (`Selection.to_dict`)."""
        graph = self.graph(place)
        with self.lock:
            own = self.parts_for(graph)  # first: they are there or not in a moment, and nothing is loaded for nothing
            return validate_nodes(graph, self.model_for(graph), nodes, own, seed=seed).to_dict()

    def qk(self, place: Any, layer: int, head: int, query: int, key: int) -> QKTable:
        """A head's score at two positions of a graph's prompt, as a sum over pairs of the graph's nodes."""
        graph = self.graph(place)
        with self.lock:
            own = self.parts_for(graph)
            return qk_table(self.model_for(graph), None, layer, head, query, key, own, graph=graph, n=100)

    def _pair(self, store: FeatureStore) -> tuple[TransformerBridge, Dictionary]:
        # The dictionary first: it is there or not in a moment, a model takes its time.
        dictionary = self.dictionary_for(store)
        return self.model_for(store), dictionary


def _place(place: Any) -> int:
    """The number of a store or graph; KeyError for what is no number."""
    if type(place) is not int:
        raise KeyError(place)
    return place


def _ids(model: TransformerBridge, prompt: Any) -> Int[Tensor, "token"]:
    ids = prompt_ids(model, prompt)
    if len(ids) > fields.TOKENS:
        raise UserError(f"expected a prompt of at most {fields.TOKENS} tokens here; got {len(ids)}; cut it")
    return ids


def _forget(kept: dict[str, Any], most: int) -> None:
    while len(kept) > most:
        del kept[next(iter(kept))]
