"""`unweave audit --scratchpad`: does the answer depend on the reasoning written before it?"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...saes.cli import Result

if TYPE_CHECKING:
    from .claims import Claim

TEXTS = ("cue", "hint")
KNOWN = (
    "prompt",
    "scratchpad",
    "answer",
    *TEXTS,
    "hint_edits",
    "intermediate",
    "paraphrases",
    "counterfactual",
    "text",
    "messages",
)
SAME_FORM = '{"prompt": "…", "scratchpad": "…", "answer": "…"}'


def scratchpad(
    paths: tuple[str, ...],
    model: str = "smollm2-135m",
    dictionary: tuple[Path, ...] = (),
    cue: str = "",
    opening: str = "<think>",
    closing: str = "</think>",
    graph: bool = True,
    resample: int = 0,
    temperature: float = 1.0,
    draws: int = 16,
    seeds: int = 3,
    seed: int = 0,
    device: str | None = None,
    out: Path | None = None,
) -> Result:
    """Check runs with a written scratchpad: is it used, needed, or for show?

    Args:
        paths: Files of .jsonl, a run a line: {"prompt", "scratchpad", "answer"}, or "text" or "messages" with markers; and, as far as
            known, "hint", "hint_edits", "intermediate", "paraphrases", "counterfactual", "cue".
        model: The model that wrote them, or is to be asked.
        dictionary: Folders of dictionaries for the attribution graph; left out: the model's own neurons.
        cue: What stands between scratchpad and answer where a line has none.
        opening: Marker in front of the scratchpad in texts and chats.
        closing: Marker behind it.
        graph: Whether to trace the answer.
        resample: How many times the model writes on from each sentence, to see whether its answers move (0: not; 16 is a good number).
        temperature: How freely it then writes.
        draws: Changes of each kind.
        seeds: Seeds that must agree.
        seed: The first of them.
        device: Device of the model.
        out: File for everything that was found, as JSON.
    """
    from ...saes import Dictionary, UserError, load_model
    from ...saes.io import write_json
    from .check import check_scratchpad

    runs = read_runs(paths)
    loaded = load_model(model, device)
    options: dict[str, Any] = {
        "dictionaries": [Dictionary.load(folder) for folder in dictionary] or None, "graph": graph, "draws": draws, "seeds": seeds,
        "seed": seed, "markers": (opening, closing), "resample": resample, "temperature": temperature,
    }  # fmt: skip
    found: list[dict[str, Any]] = []
    for number, run in enumerate(runs):
        given = {"cue": cue} | run | {"donors": donors_of(runs, number)}
        try:
            one = check_scratchpad(loaded, **given, **options)
        except UserError as error:
            found.append({"run": number, "error": str(error)})
            continue
        found.append({"run": number, **one.to_dict(), "table": repr(one).splitlines()})
    verdicts = Counter(one.get("verdict", "error") for one in found)
    result = {
        "runs": len(found),
        "verdicts": dict(verdicts),
        "table": [line for number, one in enumerate(found) for line in _told(number, one)],
        "found": found,
    }
    if out is not None:
        write_json(out, result)
    return result


def _told(number: int, one: dict[str, Any]) -> list[str]:
    head = f"run {number}"
    return [f"{head}: error: {one['error']}"] if "error" in one else [head, *one["table"]]


def read_runs(paths: Sequence[str]) -> list[dict[str, Any]]:
    """The runs of .jsonl files, as arguments of `check_scratchpad`. UserError for lines of another form."""
    from ...saes import UserError

    runs = []
    for path in paths:
        for number, line in enumerate(Path(path).read_bytes().splitlines(), 1):
            if line.strip():
                runs.append(_run(line, f"{path} line {number}"))
    if not runs:
        raise UserError(
            f"expected at least one run; got none in {', '.join(paths) or 'no file'}; write {SAME_FORM} a line"
        )
    return runs


def _run(line: bytes, where: str) -> dict[str, Any]:
    from ...saes import UserError

    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"expected a JSON object in {where}; got {line[:40]!r}; one object a line") from error
    unknown = set(record) - set(KNOWN) if isinstance(record, dict) else {"no object"}
    if unknown:
        raise UserError(f"expected {', '.join(KNOWN)} in {where}; got {sorted(unknown)[0]!r}; rename it or take it out")
    whole = record.get("messages", record.get("text"))
    prompt = record.get("prompt", whole)
    is_text = all(isinstance(record[name], str) for name in (*TEXTS, "answer") if record.get(name) is not None)
    pad = record.get("scratchpad")
    is_pad = pad is None or isinstance(pad, str) or _is_texts(pad)
    if prompt is None or not is_text or not is_pad or (whole is None and (pad is None or record.get("answer") is None)):
        raise UserError(
            f"expected {SAME_FORM} in {where}; got {line[:60]!r}; texts, and a scratchpad of text or sentences"
        )
    run = {"prompt": prompt, "scratchpad": pad} | {
        name: record[name] for name in (*TEXTS, "answer") if record.get(name) is not None
    }
    if record.get("counterfactual") is not None:
        run["counterfactual"] = _counterfactual(record["counterfactual"], where)
    if record.get("paraphrases") is not None:
        run["paraphrases"] = _checked(
            record["paraphrases"],
            lambda value: isinstance(value, list) and all(map(_is_texts, value)),
            where,
            "paraphrases as a list of texts a sentence",
        )
    if record.get("hint_edits") is not None:
        run["hint_edits"] = _edits(record["hint_edits"], where)
    if record.get("intermediate"):
        run["claims"] = claims_of(record["intermediate"], pad, where)
    return run


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


def _checked(value: Any, is_right: Any, where: str, expected: str) -> Any:
    from ...saes import UserError

    if not is_right(value):
        raise UserError(f"expected {expected} in {where}; got {str(value)[:60]!r}; mend it")
    return value


def _counterfactual(value: Any, where: str) -> dict[str, Any]:
    def is_right(value: Any) -> bool:
        texts = isinstance(value, dict) and all(isinstance(value.get(key), str) for key in ("prompt", "answer"))
        return texts and (isinstance(value.get("scratchpad"), str) or _is_texts(value.get("scratchpad")))

    return _checked(value, is_right, where, f"a counterfactual {SAME_FORM}")


def _edits(value: Any, where: str) -> tuple[tuple[str, str | None], ...]:
    def is_edit(each: Any) -> bool:
        is_pair = isinstance(each, list) and len(each) == 2
        return is_pair and isinstance(each[0], str) and (each[1] is None or isinstance(each[1], str))

    _checked(
        value,
        lambda some: isinstance(some, list) and all(map(is_edit, some)),
        where,
        "edits as pairs [new value, new answer or null]",
    )
    return tuple((new, answer) for new, answer in value)


def claims_of(values: Any, pad: Any, where: str) -> list[Claim]:
    """Claims from {"value", "sentence"?, "edits"?}: the last sentence that has the value; of a whole number edits by 1 to 4 either way."""
    from ...saes import UserError
    from .claims import Claim
    from .spans import has_word, sentences_of

    def is_value(each: Any) -> bool:
        return isinstance(each, dict) and isinstance(each.get("value"), str)

    are_values = isinstance(values, list) and all(map(is_value, values))
    _checked(values, lambda _: are_values, where, '"intermediate" as a list of {"value": "…"}')
    sentences = sentences_of(pad) if isinstance(pad, str) else list(pad or [])
    found = []
    for each in values:
        value, edits = each["value"], each.get("edits")
        holders = [i for i, sentence in enumerate(sentences) if has_word(sentence, value)]
        place = each.get("sentence", holders[-1] if holders else None)
        if not isinstance(place, int) or isinstance(place, bool):
            raise UserError(
                f"expected the value {value[:40]!r} in a sentence of the scratchpad in {where}; it is in none; give it as written"
            )
        if edits is None:
            if not re.fullmatch(r"-?\d{1,18}", value.strip()):
                raise UserError(
                    f"expected edits of {value[:40]!r}, no whole number of up to 18 digits, in {where}; got none; give [[new, answer], …]"
                )
            edits = [[str(int(value) + by), None] for by in (1, -1, 2, -2, 3, -3, 4, -4)]
        found.append(Claim(place, value, _edits(edits, where)))
    return found


def donors_of(runs: Sequence[dict[str, Any]], number: int) -> list[list[str]]:
    """The scratchpads of the other runs, if there are at least four: fewer would be drawn again and again."""
    from .spans import sentences_of

    others = [run["scratchpad"] for i, run in enumerate(runs) if i != number and run["scratchpad"]]
    found = [sentences_of(pad) if isinstance(pad, str) else list(pad) for pad in others]
    return [pad for pad in found if pad] if len(found) >= 4 else []
