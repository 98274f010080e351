"""Uploading a dictionary to the Hugging Face hub: our folder, and a model card that says what it is and where it comes from."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from . import saelens
from .hub import PART, check_repository

if TYPE_CHECKING:
    from ..dictionary import Dictionary


def push(
    dictionary: Dictionary,
    repo_id: str,
    folder: str = "",
    *,
    metrics: Any = None,
    private: bool | None = None,
    message: str = "Upload a dictionary",
    token: str | None = None,
) -> str:
    """Upload to `repo_id`, made if it is not there, into `folder` of it; gives back the name that `Dictionary.load` takes.

    `metrics`, an evaluation or any numbers by name, stand on the card. UserError where the hub cannot be reached or refuses.
    """
    check_repository(repo_id)
    if folder and not all(PART.fullmatch(part) for part in folder.split("/")):
        raise UserError(f"expected a folder inside the repository; got {folder[:80]!r}; mend the name")
    from huggingface_hub import HfApi

    with tempfile.TemporaryDirectory() as place:
        saelens.save(dictionary, Path(place))
        (Path(place) / "README.md").write_text(card(dictionary, repo_id, folder, metrics), encoding="utf-8")
        try:
            api = HfApi(token=token)
            repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
            api.upload_folder(
                repo_id=repo_id, folder_path=place, path_in_repo=folder or None, commit_message=message, token=token
            )
        except Exception as error:  # no connection, no right to write, no such account: the hub says which
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
            raise UserError(
                f"expected to write {repo_id} on the hub; it refused or could not be reached ({reason}); log in with `hf auth login`"
            ) from error
    return f"{repo_id}/{folder}" if folder else repo_id


def card(dictionary: Dictionary, repo_id: str, folder: str = "", metrics: Any = None) -> str:
    """The README.md: tags for the hub, what the dictionary is, how to load it, its metrics and provenance."""
    import yaml

    config, model = dictionary.config, dictionary.metadata.get("model") or {}
    there = saelens.architecture_of(dictionary)
    expressed = not there.startswith(saelens.OWN)
    kind = kind_of(dictionary)
    tags = ["unweave", "mechanistic-interpretability", "sparse-autoencoder", kind.replace(" ", "-"), config.activation]
    head: dict[str, Any] = {
        "library_name": "unweave",
        "tags": list(dict.fromkeys([*tags, *(["saelens"] if expressed else [])])),
    }
    if isinstance(model.get("name"), str) and "/" in model["name"]:
        head["base_model"] = model["name"]
    name = f"{repo_id}/{folder}" if folder else repo_id
    lines = [
        "---",
        yaml.safe_dump(head, sort_keys=False, allow_unicode=True).strip(),
        "---",
        "",
        f"# {kind.capitalize()}",
        "",
    ]
    lines += [_cell(repr(dictionary)), "", *_table("", {
        "model": model.get("name") or "not told",
        "reads": ", ".join(config.site) or "not told",
        "writes": ", ".join(config.sites_out) or "not told",
        "latents": config.latents,
        "rule": config.activation,
        "k": config.k,
        "nested prefixes": ", ".join(map(str, config.matryoshka)) or "none",
    }), ""]  # fmt: skip
    lines += [
        "## Use",
        "",
        "```python",
        "from unweave.saes import Dictionary",
        f'dictionary = Dictionary.load("{name}")',
        "```",
        "",
    ]
    if expressed:
        lines += [f"It acts on raw activations. SAELens 6 loads the same folder; its name there is `{there}`.", ""]
    else:
        lines += ["It acts on raw activations. SAELens cannot express it, and refuses it by name.", ""]
    if metrics is not None:
        lines += ["## Metrics", "", *_table("", _numbers(metrics)), ""]
    return "\n".join([*lines, "## Provenance", "", *_table("", _provenance(dictionary)), ""])


def kind_of(dictionary: Dictionary) -> str:
    """What it is called: a sparse autoencoder, transcoder, skip transcoder, crosscoder, cross-layer transcoder, shared dictionary."""
    config = dictionary.config
    if config.across == "cross_layer":
        return "cross-layer transcoder"
    if config.across == "shared":
        return "shared dictionary"
    if not dictionary.is_single:
        return "crosscoder"
    return ("skip transcoder" if config.skip else "transcoder") if config.is_transcoder else "sparse autoencoder"


def _provenance(dictionary: Dictionary) -> dict[str, Any]:
    metadata, rule = dictionary.metadata, dictionary.keep_rule
    model = metadata.get("model") or {}
    known = {
        "fingerprint": dictionary.fingerprint,
        "model fingerprint": model.get("fingerprint"),
        "tokenizer fingerprint": model.get("tokenizer"),
        "activations": metadata.get("shards"),
        "context": metadata.get("context"),
        "documents held out": metadata.get("held_out"),
        "positions left out": rule.drop_positions,
        "token ids left out": ", ".join(map(str, rule.drop_tokens)),
        "norms clipped to" if rule.massive == "clip" else "largest norms kept": ", ".join(
            f"{site} {limit:.4g}" for site, limit in rule.max_norm.items()
        ),
    }
    return {name: value for name, value in known.items() if value not in (None, "")}


def _numbers(metrics: Any) -> dict[str, Any]:
    numbers = metrics.to_dict() if hasattr(metrics, "to_dict") else metrics
    if not isinstance(numbers, Mapping):
        raise UserError(
            f"expected metrics as numbers by name, or an evaluation; got {type(metrics).__name__}; give a dict"
        )
    return {str(name): _shown(value) for name, value in numbers.items()}


def _shown(value: Any) -> str:
    """A number as a person reads it; of several, each."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_shown(item)}" for name, item in value.items())
    if isinstance(value, list | tuple):
        return " to ".join(map(_shown, value)) if len(value) == 2 else ", ".join(map(_shown, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _table(first: str, rows: Mapping[str, Any]) -> list[str]:
    return [f"| {first} | |", "|---|---|", *(f"| {_cell(name)} | {_cell(value)} |" for name, value in rows.items())]


def _cell(value: Any) -> str:
    """Text that neither ends a cell nor is markup."""
    text = " ".join(str(value).split())[:500]
    return "".join("\\" + letter if letter in "\\|<>[]*_`" else letter for letter in text)
