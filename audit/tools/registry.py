"""The registry: each tool is one function, and everything that others need to know of it is made from its signature.

    @tool("look", cost=1)
    def top_features(session: Session, text: Text | None = None, k: Rows = 10) -> Answer:
        "What an agent reads ... Args: ..."

The JSON schema of the arguments, the check of what comes in (pydantic, strict: no unknown names, no other types, sizes as stated) and the
form that language models' function calling wants all follow from the annotations, so that they cannot disagree. A tool is given a
Session and checked values, and answers with an Answer (answers.py); what it costs is known before it works.
"""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from ...saes import UserError
from .untrusted import shown

if TYPE_CHECKING:
    from .measures.readings import Reading

Group = Literal["look", "act", "compare", "conclude"]
TOLD = 3  # mistakes of one call that are told


class Refused(UserError):
    """A call that is answered with an error of `kind`: arguments, user, budget, unknown_tool, internal; `field` is the argument at fault.

    `said` is what somebody else's program says of it (a chat template), which stands apart from our message, marked as untrusted.
    """

    def __init__(self, message: str, kind: str = "arguments", field: str | None = None, said: str | None = None):
        super().__init__(message)
        self.kind, self.field, self.said = kind, field, said


@dataclass(frozen=True)
class Tool:
    """One tool. `cost` is the least it costs in model runs, `price` what a call with given arguments costs.

    `parameters` is the JSON schema of its arguments. `reads_only` is False where a call changes what later calls find in the session.
    `reads` tells what a call needs that a session pays for once (measures/readings.py), on top of its price.
    """

    name: str
    group: Group
    description: str
    cost: int
    parameters: dict[str, Any]
    function: Callable[..., Any] = field(repr=False)
    reads_only: bool
    price: Callable[[Any, Mapping[str, Any]], int] = field(repr=False)
    reads: Callable[[Any, Mapping[str, Any]], Sequence[Reading]] = field(repr=False)
    arguments: type[BaseModel] = field(repr=False)

    def check(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments with their defaults; Refused (kind arguments) for what does not fit the schema."""
        try:
            checked = self.arguments.model_validate(dict(arguments))
        except ValidationError as error:
            raise _mistakes(self.name, error) from error
        return {name: getattr(checked, name) for name in self.arguments.model_fields}


TOOLS: dict[str, Tool] = {}
"""Every tool by its name, in the order look, act, compare, conclude (the order of the imports in `unweave.audit.tools`)."""


def tool(
    group: Group,
    *,
    cost: int = 0,
    price: Callable[[Any, Mapping[str, Any]], int] | None = None,
    reads: Callable[[Any, Mapping[str, Any]], Sequence[Reading]] | None = None,
    reads_only: bool = True,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register the function under its own name.

    `price(session, arguments)` tells what a call costs, left out: `cost`; `reads(session, arguments)` which readings it needs, left
    out: none.
    """

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        name = function.__name__
        description, about = documented(inspect.getdoc(function) or "")
        arguments = _model(name, function)
        TOOLS[name] = Tool(
            name, group, description, cost, _schema(arguments, about), function, reads_only, price or (lambda session, given: cost),
            reads or (lambda session, given: ()), arguments,
        )  # fmt: skip
        return function

    return register


def schemas() -> list[dict[str, Any]]:
    """Every tool in the form of function calling: {"type": "function", "function": {"name", "description", "parameters"}}."""
    return [
        {
            "type": "function",
            "function": {"name": each.name, "description": each.description, "parameters": each.parameters},
        }
        for each in TOOLS.values()
    ]


def documented(text: str) -> tuple[str, dict[str, str]]:
    """A docstring as its description and, from the lines below "Args:", a sentence for each argument."""
    description, _, rest = text.partition("\nArgs:\n")
    about: dict[str, str] = {}
    name = ""
    for line in rest.splitlines():
        found = re.match(r"^    (\w+): (.*)$", line)
        if found:
            name = found[1]
            about[name] = found[2].strip()
        elif line.strip() and name:
            about[name] += f" {line.strip()}"
    return description.strip(), about


def _model(name: str, function: Callable[..., Any]) -> type[BaseModel]:
    """The pydantic model of a function's arguments, its session aside."""
    hints = typing.get_type_hints(function, include_extras=True)
    fields: dict[str, Any] = {}
    for parameter in list(inspect.signature(function).parameters.values())[1:]:
        default = ... if parameter.default is inspect.Parameter.empty else parameter.default
        fields[parameter.name] = (hints[parameter.name], default)
    config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    return create_model(f"{name}_arguments", __config__=config, **fields)


def _schema(arguments: type[BaseModel], about: Mapping[str, str]) -> dict[str, Any]:
    """The JSON schema with a description for each argument; references are written out, since not every endpoint follows them."""
    whole = arguments.model_json_schema()
    plain = _inlined(whole, whole.get("$defs", {}))
    for name, part in plain.setdefault("properties", {}).items():
        if name in about:
            part["description"] = about[name]
    return plain


def _inlined(part: Any, definitions: Mapping[str, Any], is_names: bool = False) -> Any:
    if isinstance(part, list):
        return [_inlined(each, definitions) for each in part]
    if not isinstance(part, dict):
        return part
    if not is_names and "$ref" in part:
        return _inlined(definitions[part["$ref"].rsplit("/", 1)[1]], definitions)
    dropped = () if is_names else ("$defs", "title")
    return {
        name: _inlined(each, definitions, name == "properties") for name, each in part.items() if name not in dropped
    }


def _mistakes(name: str, error: ValidationError) -> Refused:
    found = error.errors(include_url=False, include_context=False)
    said = []
    for each in found[:TOLD]:
        place = shown(".".join(str(part) for part in each["loc"]), 60) or "the arguments"
        came = "" if each["type"] == "missing" else f"; got {shown(repr(each['input']), 60)}"
        why = shown(each["msg"], 160)
        said.append(f"expected {place}: {why[:1].lower()}{why[1:]}{came}")  # a pattern is told as it is
    more = f" (and {len(found) - TOLD} more)" if len(found) > TOLD else ""
    first = shown(str(found[0]["loc"][0]), 60) if found[0]["loc"] else None
    return Refused(f"{' | '.join(said)}{more}; see the parameters of {name}", "arguments", first)
