"""Dictionary + tokens → FeatureStore: one pass over the codes, then what the weights alone say.

The pass gathers FeatureStats and writes the codes (codes_file.py). From time to time its state is made durable, so that a
killed `collect`, called again, goes on from there and gives the same bytes as one that was not. Then come the arrays that
need no text (weights.py) and, of the top examples, two entropies in bits: of the tokens it fires on, and of the pairs of
tokens before those.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Int
from torch import Tensor
from tqdm import tqdm

from ...codes import Codes
from ...dictionary import Dictionary
from ...errors import UserError
from ...evaluate import check_shards, check_source
from ...models import load_model, model_info
from ...shards.folder import Shards
from ...splice import check_model
from ..shelf.store import FeatureStore
from ..shelf.write import write_store
from .counters import example_entropies
from .partial import Partial, checkpoint_tokens, versions
from .stats import FeatureStats
from .weights import vocabulary, weight_arrays

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

    from ..codes.codes_file import CodesWriter


@torch.no_grad()
def collect(
    dictionary: Dictionary,
    shards: Shards,
    folder: str | Path,
    model: TransformerBridge | None = None,
    *,
    batch: int = 8192,
    progress: bool = True,
    resume: bool = True,
    checkpoint_every: int | None = None,
    codes_mib: int = 2048,
    seed: int = 0,
) -> FeatureStore:
    """Gather what every latent does on the tokens of `shards` into a FeatureStore at `folder`.

    `model` (loaded by the Shards' model name when left out) gives the vocabulary and the unembedding. `batch` is tokens per
    step. The codes are kept beside if they take at most `codes_mib` MiB (0: never), `seed` draws the samples. What a killed
    call left in `folder` is gone on with, or begun anew without `resume`; `checkpoint_every` is in tokens (left out: by the
    dictionary's size).
    Raises UserError if dictionary, Shards and model do not belong together, a token of the Shards is none of the model's,
    `folder` holds other files, or the unfinished store there was begun with other settings.
    """
    folder, every = Path(folder), checkpoint_every or checkpoint_tokens(dictionary.config.latents)
    if min(batch, every) < 1 or codes_mib < 0:
        raise UserError(
            f"expected batch and checkpoint of a token or more, codes_mib of 0 or more; got {batch}, {every}, {codes_mib}"
        )
    check_shards(dictionary, shards)
    if dictionary.layout.is_shared:
        raise UserError(
            f"expected one of the sites that share this dictionary ({', '.join(dictionary.config.site)}); "
            "give dictionary.at(site), or --site"
        )
    model = model or load_model(shards.manifest["model"]["name"])
    check_model(dictionary, model)
    check_source(shards, model)
    _check_tokens(shards, int(model.cfg.d_vocab))
    about: dict[str, Any] = {**_provenance(dictionary, shards, model), "seed": seed}
    settings = {
        "dictionary": dictionary.fingerprint,
        "shards": shards.fingerprint,
        "model": about["model"]["fingerprint"],
    }
    settings |= {"batch": batch, "checkpoint_every": every, "codes_mib": codes_mib, "seed": seed}
    partial = Partial(folder, settings, resume)
    if partial.is_done:
        return FeatureStore.open(folder)
    stats = FeatureStats(
        dictionary.config.latents,
        context=int(shards.positions.max()) + 1,
        vocab=int(model.cfg.d_vocab),
        seed=seed,
    )
    writer = _pass(dictionary, shards, stats, partial, batch, every, codes_mib, progress)
    arrays = stats.freeze()
    arrays["token_entropy"], arrays["context_entropy"] = example_entropies(
        arrays["example_rows"].long(), shards.tokens, shards.positions
    )
    arrays |= weight_arrays(dictionary, model, progress)
    about |= {
        "rows": stats.rows,
        "kept_rows": stats.kept,
        "before": stats.before,
        "after": stats.after,
        "position_width": stats.positions.width,
        "token_error": stats.tokens.error,
        "codes": writer.finish(),
    }
    write_store(folder, about, arrays, shards, vocabulary(model), stats.token_rows)
    partial.remove()
    return FeatureStore.open(folder)


def _check_tokens(shards: Shards, vocab: int) -> None:
    """UserError unless every token id is one of the model's."""
    low, high = int(shards.tokens.min()), int(shards.tokens.max())
    if not 0 <= low <= high < vocab:
        raise UserError(
            f"expected token ids below {vocab} (the model's vocabulary) in {shards.folder}; got {high if low >= 0 else low}; "
            "cache the text anew with this model"
        )


def _provenance(dictionary: Dictionary, shards: Shards, model: TransformerBridge) -> dict[str, Any]:
    place = dictionary.folder
    return {
        "model": model_info(model).dict(),
        "dictionary": {
            "fingerprint": dictionary.fingerprint,
            "site": ", ".join(dictionary.config.site),
            "site_out": ", ".join(dictionary.config.sites_out),
            "folder": None if place is None else str(place.resolve()),
        },
        "shards": shards.fingerprint,
        "text": shards.manifest.get("text"),
        "context": shards.manifest["context"],
        "bos": shards.manifest["model"]["bos"],
        "special_tokens": shards.manifest.get("special_tokens"),
        "keep": dictionary.keep_rule.to_dict(),
        "versions": versions(),
    }


def _pass(
    dictionary: Dictionary, shards: Shards, stats: FeatureStats, partial: Partial, batch: int, every: int,
    codes_mib: int, progress: bool,
) -> CodesWriter:  # fmt: skip
    """Feed all rows to `stats` and a CodesWriter, from where `partial` stopped."""
    from ..codes.codes_file import CodesWriter

    done = partial.load(stats)
    writer = CodesWriter(partial.folder, dictionary.config.latents, float(codes_mib))
    writer.resume(done)
    sites = _sites(dictionary, shards)
    saved = done
    with tqdm(
        total=len(shards), initial=done, unit="tok", unit_scale=True, desc="collect", disable=not progress
    ) as bar:
        for start, stop in block_spans(shards.positions, batch):
            if stop <= done:
                continue
            part = {site: rows.float() for site, rows in shards.read(sites, slice(start, stop)).items()}
            positions, tokens = shards.positions[start:stop], shards.tokens[start:stop]
            kept = dictionary.kept(positions, part, tokens).cpu()
            codes = dictionary.encode(part).cpu()
            codes = Codes(torch.where(kept[:, None], codes.values.float(), 0.0), codes.indices)
            if not torch.isfinite(codes.values.sum()):
                raise UserError(
                    f"expected finite activations of {dictionary.read}; got NaN or infinity in rows {start} to {stop}; "
                    "cache them again, in float32 or bfloat16"
                )
            stats.update(codes, positions, start, kept, tokens)
            writer.append(start, codes)
            bar.update(stop - start)
            if stop - saved >= every:
                writer.flush()
                partial.save(stats)
                saved = stop
    return writer


def _sites(dictionary: Dictionary, shards: Shards) -> list[str]:
    """What has to be read: the sites of the encoder, and those whose norms the keep rule limits."""
    limited = [site for site in dictionary.keep_rule.max_norm if site in dictionary.sites]
    return list(dict.fromkeys([*dictionary.config.site, *(site for site in limited if site in shards.sites)]))


def block_spans(positions: Int[Tensor, "row"], batch: int) -> Iterator[tuple[int, int]]:
    """Cut the rows into spans of about `batch` that never split a block."""
    starts = (positions == 0).nonzero().squeeze(1).tolist() + [len(positions)]
    begin = 0
    for start, following in zip(starts, starts[1:] + [starts[-1]], strict=True):
        if (following - begin > batch and start > begin) or start == len(positions):
            yield begin, start
            begin = start
