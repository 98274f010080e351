"""Models that are no TransformerBridge: a Hugging Face causal language model, or any torch module that takes tokens `[batch seq]`.

    cache(AutoModelForCausalLM.from_pretrained(name).eval(), texts, ["blocks.8.hook_resid_post"], folder, tokenizer=tokenizer)

A Hugging Face model has the same site names as its bridge where the place is the same (`hook_embed`, `blocks.3.hook_resid_pre`
and `_post`, `mlp` and `attn` with `.hook_in` and `.hook_out`), so that a dictionary fits both; every other module has the
name of its path, `model.norm` for what it returns and `model.norm.input` for what it is given. A torch module has paths
only. Of a tuple the first part is taken, of a module that runs more than once the first run. The forward pass ends, by an
exception that is caught here, as soon as every site was seen.

Padding stands on the right, so a module must be causal for the rows not to depend on it; else give blocks of one length.
"""

from __future__ import annotations

import contextlib
import difflib
import inspect
import re
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor, nn

from .errors import UserError

UNKNOWN = 2**31 - 1  # a context length or vocabulary that no config tells: no limit
LAYERS = ("layers", "h", "blocks", "block")
ATTENTION = ("self_attn", "attn", "attention")
# With these, what a part returns is not what is added to the residual stream, or embeddings not what enters the first block.
POST_NORMS = ("post_feedforward_layernorm", "post_mlp_layernorm")
MULTIPLIERS = ("residual_multiplier", "embedding_multiplier")
CANONICAL = re.compile(r"blocks\.(\d+)\.(?:(mlp|attn)\.hook_(in|out)|hook_resid_(pre|post)|hook_(mlp|attn)_out)")


class Reached(Exception):
    """Every wanted site was seen: the rest of the forward pass is not needed."""


class Place(NamedTuple):
    """A module by its path, and whether its input is meant or its output."""

    path: str
    is_input: bool


class PlainModel:
    """A torch module, its tokenizer (None: only token blocks can be read) and what is known of its shape."""

    def __init__(self, module: nn.Module, tokenizer: Any = None, name: str | None = None):
        self.module, self.tokenizer = module, tokenizer
        config = getattr(module, "config", None)
        self.config: Any = (
            None if config is None or not hasattr(config, "get_text_config") else config.get_text_config()
        )
        self.name = name or str(getattr(config, "name_or_path", "") or type(module).__name__)
        self._places: dict[str, Place] = {}

    def parameters(self) -> Iterator[nn.Parameter]:
        """The module's parameters."""
        return self.module.parameters()

    @cached_property
    def modules(self) -> dict[str, nn.Module]:
        """Every module by its path; one that is shared has the path met first."""
        return {path: module for path, module in self.module.named_modules() if path}

    @cached_property
    def layers(self) -> str | None:
        """Path of the list of blocks, of a Hugging Face model."""
        count = getattr(self.config, "num_hidden_layers", None)
        for path, module in self.modules.items():
            if isinstance(module, nn.ModuleList) and path.rpartition(".")[2] in LAYERS and len(module) == count:
                return path
        return None

    def shape(self) -> dict[str, Any]:
        """The entries of ModelInfo that tell a shape; UNKNOWN is no limit."""
        embeddings = [module for module in self.module.modules() if isinstance(module, nn.Embedding)]
        known = {"n_layers": 0, "d_model": embeddings[0].embedding_dim if embeddings else 0, "n_ctx": UNKNOWN}
        known |= {"d_vocab": embeddings[0].num_embeddings if embeddings else UNKNOWN}
        names = {
            "n_layers": "num_hidden_layers",
            "d_model": "hidden_size",
            "n_ctx": "max_position_embeddings",
            "d_vocab": "vocab_size",
        }
        told = {ours: getattr(self.config, theirs, None) for ours, theirs in names.items()}
        return known | {name: int(value) for name, value in told.items() if value}

    def weights(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Parameters under the names that the bridge of the same model gives them, as far as it keeps them as they are.

        It does not where it splits one matrix into queries, keys and values (GPT-2, GPT-NeoX): fingerprints differ there.
        """
        for name, parameter in self.module.named_parameters():
            yield (self._bridge_name(name) if self.layers else name), parameter

    def _bridge_name(self, name: str) -> str:
        *path, own = name.split(".")
        named: list[str] = []
        for depth, part in enumerate(path, start=1):
            before = ".".join(path[:depth])
            is_holder = self.layers is not None and f"{self.layers}.".startswith(f"{before}.")
            named += [part] if is_holder else [part, "_original_component"]
        return ".".join([*named, own])

    def resolve(self, name: str) -> str:
        """The canonical spelling of a site; UserError with near names when there is no such place."""
        place = self._canonical_place(name) or self._path_place(name)
        if place is None:
            choice = [*self.modules, *(f"blocks.0.{end}" for end in ("hook_resid_post", "mlp.hook_out"))]
            near = difflib.get_close_matches(name, choice, n=3, cutoff=0.3) or choice[:3]
            raise UserError(f"expected a site of this model; got {name!r}; did you mean {', '.join(near)}?")
        canonical = self._spelling(place)
        self._places[canonical] = place
        return canonical

    def place(self, site: str) -> Place:
        """Where a site is."""
        if site not in self._places:
            self.resolve(site)
        return self._places[site]

    def _canonical_place(self, name: str) -> Place | None:
        if self.layers is None:
            return None
        is_scaled = any(hasattr(self.config, one) for one in MULTIPLIERS)
        if name == "hook_embed" and not is_scaled:
            wanted = self.module.get_input_embeddings()  # type: ignore[operator]  # every Hugging Face model has it
            return next((Place(path, False) for path, module in self.modules.items() if module is wanted), None)
        match = CANONICAL.fullmatch(name)
        block = match and f"{self.layers}.{int(match[1])}"
        if match is None or block not in self.modules:
            return None
        _, part, end, around, alias = match.groups()
        if around:
            return Place(block, around == "pre")
        if alias and (is_scaled or any(f"{block}.{norm}" in self.modules for norm in POST_NORMS)):
            return None
        names = ("mlp",) if "mlp" in (part, alias) else ATTENTION
        path = next((f"{block}.{one}" for one in names if f"{block}.{one}" in self.modules), None)
        return Place(path, end == "in") if path else None

    def _path_place(self, name: str) -> Place | None:
        if name in self.modules:
            return Place(name, False)
        path, _, end = name.rpartition(".")
        return Place(path, end == "input") if end in ("input", "output") and path in self.modules else None

    def _spelling(self, place: Place) -> str:
        path, is_input = place
        end = "in" if is_input else "out"
        match = re.fullmatch(rf"{re.escape(self.layers)}\.(\d+)(?:\.(\w+))?", path) if self.layers else None
        if match and match[2] is None:
            return f"blocks.{match[1]}.hook_resid_{'pre' if is_input else 'post'}"
        if match and match[2] in ("mlp", *ATTENTION):
            return f"blocks.{match[1]}.{'mlp' if match[2] == 'mlp' else 'attn'}.hook_{end}"
        if not is_input and self.layers and place == self._canonical_place("hook_embed"):
            return "hook_embed"
        return f"{path}.input" if is_input else path

    def forward(self, tokens: Int[Tensor, "batch seq"], **more: Any) -> Any:
        """Run the module; UserError for one in training mode, or that takes no positions where they are given."""
        if self.module.training:
            raise UserError(f"expected {self.name} in evaluation mode; dropout may be on; call model.eval()")
        if self.config is not None:
            return self.module(input_ids=tokens, use_cache=False, **more)
        if more and not more.keys() <= inspect.signature(self.module.forward).parameters.keys():
            raise UserError(
                f"expected a model that can be told positions; {self.name} takes no position_ids; cache it without packing"
            )
        return self.module(tokens, **more)

    @contextlib.contextmanager
    def reaching(self, sites: list[str], keep: Callable[[str, Any], None]) -> Iterator[None]:
        """Within the block, a forward pass hands the value at each site to `keep` and ends by Reached after the last one."""
        waiting = set(sites)

        def seen(site: str, value: Any) -> None:
            if site in waiting:
                keep(site, value[0] if isinstance(value, tuple) else value)
                waiting.discard(site)
                if not waiting:
                    raise Reached

        handles = [self._hook(self.place(site), site, seen) for site in sites]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, place: Place, site: str, seen: Callable[[str, Any], None]) -> Any:
        module = self.modules[place.path]
        if not place.is_input:
            return module.register_forward_hook(lambda module, given, result: seen(site, result))
        return module.register_forward_pre_hook(
            lambda module, given, named: seen(site, _first_tensor(given, named)), with_kwargs=True
        )


def _first_tensor(given: tuple[Any, ...], named: dict[str, Any]) -> Any:
    values = [*given, *([named["hidden_states"]] if "hidden_states" in named else []), *named.values()]
    return next((value for value in values if isinstance(value, Tensor) and value.is_floating_point()), None)


def as_model(model: Any, tokenizer: Any = None, name: str | None = None) -> Any:
    """A TransformerBridge or PlainModel as it is; any other torch module as a PlainModel. UserError for anything else."""
    if isinstance(model, PlainModel) or not isinstance(model, torch.nn.Module):
        return model
    return model if hasattr(model, "hook_dict") else PlainModel(model, tokenizer, name)
