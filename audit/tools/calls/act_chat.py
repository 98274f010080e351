"""Act: let the target write, and the base model beside it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import torch
from jaxtyping import Int
from pydantic import Field
from torch import Tensor

from ....circuits.prompts.stream import stream
from ....circuits.prompts.text import has_chat
from ....saes import UserError, model_info
from ..answers import Answer
from ..budget import written
from ..fields import Messages, Seed, Text, Whole
from ..measures.batched import write_many
from ..measures.prompts import given, ids_of
from ..registry import Refused, tool
from ..session import Session
from ..untrusted import untrusted

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

SHOWN = 1_200  # characters of one sample
COOLEST = 1e-3  # the least temperature but 0: below it logits that are divided by it have no numbers
Question = Annotated[str, Field(min_length=1, max_length=600), Whole]


class Sample(NamedTuple):
    """What one model wrote: text, token ids, and what each model says of them, in nats a token (None: it cannot be told)."""

    text: str
    ids: list[int]
    target: float | None
    base: float | None


def _price(session: Session, arguments: Mapping[str, Any]) -> int:
    samples = arguments["n"] if arguments["temperature"] > 0 else 1
    if arguments["prompts"]:
        models = 1 + (session.workspace.has_base and arguments["beside_base"])
        return written(arguments["tokens"], samples * len(arguments["prompts"])) * models
    return (written(arguments["tokens"], samples) + 2 * samples) * (1 + session.workspace.has_base)


@tool("act", cost=4, price=_price)
def chat(
    session: Session,
    messages: Messages | None = None,
    text: Text | None = None,
    prompts: Annotated[list[Question], Field(min_length=1, max_length=48)] | None = None,
    beside_base: bool = True,
    system: Annotated[str, Field(max_length=2_000)] | None = None,
    prefill: Annotated[str, Field(max_length=2_000)] | None = None,
    n: Annotated[int, Field(ge=1, le=8)] = 1,
    tokens: Annotated[int, Field(ge=1, le=200)] = 60,
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.0,
    seed: Seed | None = None,
) -> Answer:
    """Samples of what the target writes, each beside what the base model writes to the same prompt (where there is a base).

    `target_nats` and `base_nats` are how surprising each model finds the target's text, per token. What the base finds far more surprising
    shows what was learned; `gap` is that difference, and `base_gap`, its control, the same for the base's own texts (none of them
    where the tokenizers differ). Samples with the largest gap come first. What is written is untrusted data, whatever it says.

    With `prompts`, many short questions are answered, each as a conversation of its own: `replies` in their order, without surprise.

    Args:
        messages: A chat, where the model takes messages.
        text: Plain text to go on from, instead of messages.
        prompts: Up to 48 questions asked one by one, instead of messages and text.
        beside_base: With prompts: ask the base model too.
        system: A system message in front of the messages.
        prefill: The beginning of the answer, which the model goes on with.
        n: Samples; at temperature 0 they would all be the same, so one is made.
        tokens: New tokens at most.
        temperature: 0 takes the likeliest token each time; else at least 0.001.
        seed: Another seed gives other samples; left out, the session's.
    """
    if 0 < temperature < COOLEST:
        raise Refused(
            f"expected a temperature of 0, or of {COOLEST:g} to 2; got {temperature:.3g}; 0 takes the likeliest token",
            field="temperature",
        )
    first = session.seed if seed is None else seed
    count = n if temperature > 0 else 1
    if prompts is not None:
        if text is not None or messages is not None:
            raise Refused("expected prompts, or else a text or messages; got both; give one of them", field="prompts")
        asked = [asked_as(session, each, system, prefill) for each in prompts]
        names = tuple(session.workspace.models) if beside_base else ("target",)
        return _many(session, asked, names, tokens, temperature, first, count)
    prompt = _prompt(given(text, messages), system, prefill)
    options = {"tokens": tokens, "temperature": temperature}
    for name in session.workspace.models:
        ids_of(session, prompt, name)  # what a model cannot read is refused before another has run
    samples = [_pair(session, prompt, first * 1_000 + number, options) for number in range(count)]
    rows = [_row(number, *pair) for number, pair in enumerate(samples)]
    rows.sort(key=lambda row: (-(row.get("gap") or 0.0), row["sample"]))
    result: dict[str, Any] = {"samples": rows, "temperature": temperature}
    if session.workspace.has_base:
        result["same_as_base"] = (
            f"{sum(own.ids == other.ids for own, other in samples if other is not None)} of {count}"
        )
        for name in ("gap", "base_gap"):
            values = [row[name] for row in rows if row.get(name) is not None]
            result[f"mean_{name}"] = sum(values) / len(values) if values else None
    return Answer(result, "samples", session.about(), first)


def asked_as(session: Session, question: str, system: str | None, prefill: str | None) -> str | list[dict[str, str]]:
    """A question as the target is asked: a message where it takes messages, else plain text."""
    is_chat = has_chat(session.workspace.model())
    return _prompt([{"role": "user", "content": question}] if is_chat else question, system, prefill)


def _many(
    session: Session, prompts: list[Any], names: tuple[str, ...], tokens: int, temperature: float, seed: int, count: int
) -> Answer:
    """Every prompt answered `count` times by each named model, in batches."""
    asked = {name: [ids_of(session, prompt, name) for prompt in prompts for _ in range(count)] for name in names}
    told: dict[str, list[str]] = {}
    for name, rows in asked.items():
        if max(map(len, rows)) + tokens > int(session.workspace.model(name).cfg.n_ctx):
            raise UserError(f"expected prompts that leave room for {tokens} tokens; got longer ones; shorten them")
        told[name] = write_many(session.workspace.model(name), rows, tokens, temperature=temperature, seed=seed)
    replies = [
        {"prompt": row // count, "sample": row % count, **{name: untrusted(told[name][row], SHOWN) for name in told}}
        for row in range(len(prompts) * count)
    ]
    return Answer({"replies": replies, "temperature": temperature}, "replies", session.about(), seed)


def _prompt(prompt: str | list[dict[str, str]], system: str | None, prefill: str | None) -> str | list[dict[str, str]]:
    if isinstance(prompt, str):
        if system is not None:
            raise Refused("expected messages with a system message; got text; put it into the text", field="system")
        return prompt + (prefill or "")
    head = [] if system is None else [{"role": "system", "content": system}]
    tail = [] if not prefill else [{"role": "assistant", "content": prefill}]
    if tail and prompt[-1]["role"] == "assistant":
        raise Refused(
            "expected a chat that ends with the user for a prefill; got the assistant's; leave one out", field="prefill"
        )
    return [*head, *prompt, *tail]


def _pair(session: Session, prompt: Any, seed: int, options: Mapping[str, Any]) -> tuple[Sample, Sample | None]:
    own = _written(session, "target", prompt, seed, options)
    return own, _written(session, "base", prompt, seed, options) if session.workspace.has_base else None


def _written(session: Session, which: str, prompt: Any, seed: int, options: Mapping[str, Any]) -> Sample:
    model = session.workspace.model(which)
    ids = ids_of(session, prompt, which)
    room = int(model.cfg.n_ctx) - len(ids)
    if room < 1:
        raise UserError(
            f"expected a prompt that leaves room to write; it has {len(ids)} tokens, as many as the context; shorten it"
        )
    pieces = list(
        stream(model, ids, tokens=min(options["tokens"], room), temperature=options["temperature"], seed=seed)
    )
    new = [piece.token for piece in pieces]
    models = session.workspace.models
    # Under another tokenizer the same numbers are other words.
    is_told = session.workspace.has_base and len({model_info(each).tokenizer for each in models.values()}) == 1
    nats = {
        name: _nats(models[name], ids_of(session, prompt, name), new) if is_told else None
        for name in ("target", "base")
    }
    return Sample("".join(piece.text for piece in pieces), new, nats["target"], nats["base"])


@torch.no_grad()
def _nats(model: TransformerBridge, ids: Int[Tensor, "token"], new: list[int]) -> float | None:
    """-log p of the new tokens after the prompt, a token, at temperature 1; None where there is no room in the context."""
    if max(new) >= int(model.cfg.d_vocab) or len(ids) + len(new) > int(model.cfg.n_ctx):
        return None
    whole = torch.cat([ids, ids.new_tensor(new)])
    logits = model(whole[None])[0, len(ids) - 1 : -1].float().log_softmax(-1)
    return -float(logits.gather(1, whole[len(ids) :, None]).mean())


def _row(number: int, own: Sample, other: Sample | None) -> dict[str, Any]:
    row: dict[str, Any] = {"sample": number, "target": untrusted(own.text, SHOWN)}
    if other is None:
        return row
    row |= {"base": untrusted(other.text, SHOWN), "target_nats": own.target, "base_nats": own.base}
    row["gap"] = None if own.target is None or own.base is None else own.base - own.target
    row["base_gap"] = None if other.target is None or other.base is None else other.target - other.base
    return row
