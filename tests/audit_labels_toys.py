"""A FeatureStore whose latents are known: what each fires on is a rule, so the right label is known too.

0 CAT     the token " cat"                          4 DENSE   every token
1 NUMBER  tokens of digits                          5 NOISE   one token in thirty, by chance
2 OF_THE  " the" where " of" stands before it       6 RARE    three places in all
3 DEAD    never                                     7 DOG     the token " dog", a neighbour of CAT by its decoder row
"""

from pathlib import Path

import fakes
import torch
from unweave.saes import Codes, FeatureStats, FeatureStore
from unweave.saes.io import write_json, write_tensors
from unweave.saes.latents.codes.codes_file import CodesWriter
from unweave.saes.latents.shelf.store import FORMAT, VERSION

CAT, NUMBER, OF_THE, DEAD, DENSE, NOISE, RARE, DOG = range(8)
VOCAB = [
    " cat",
    " the",
    " of",
    " dog",
    " 7",
    " 19",
    " 2024",
    *(f" {word}" for word in fakes.WORDS[4:] if word != "dog"),
    ".",
    "\n",
]
BLOCK, BLOCKS = 32, 200


def store(folder: Path, documents: int = 50, seed: int = 0) -> FeatureStore:
    """Write the store: 200 blocks of 32 tokens in `documents` documents, with its codes."""
    generator = torch.Generator().manual_seed(seed)
    rows = BLOCK * BLOCKS
    odds = torch.ones(len(VOCAB))
    odds[[0, 3, 4, 5, 6]] = 0.35
    odds[[1, 2]] = 1.5
    tokens = torch.multinomial(odds, rows, replacement=True, generator=generator)
    at = torch.arange(rows)
    tokens[::BLOCK] = len(VOCAB) - 1  # as a BOS, on which nothing fires
    positions, of_document = at % BLOCK, at // BLOCK * documents // BLOCKS
    codes = Codes(*_activations(tokens, positions, generator).topk(8))
    stats = FeatureStats(
        8, fakes.EXAMPLES, fakes.BEFORE, fakes.AFTER, samples=fakes.SAMPLES, context=BLOCK, vocab=len(VOCAB)
    )
    stats.update(codes, positions, 0, torch.ones(rows, dtype=torch.bool), tokens)
    arrays = fakes._random_arrays(8, rows, len(VOCAB), generator) | stats.freeze()
    arrays["neighbours"] = torch.tensor([[DOG], [0], [0], [0], [0], [0], [0], [CAT]]).int()
    arrays["neighbour_cosines"] = torch.full((8, 1), 0.5)
    writer = CodesWriter(folder, 8, 64.0)
    writer.append(0, codes)
    encoded = [token.encode() for token in VOCAB]
    text = {"tokens": tokens.int(), "positions": positions.int(), "documents": of_document.int(),
            "vocab_bytes": torch.frombuffer(bytearray(b"".join(encoded)), dtype=torch.uint8),
            "vocab_ends": torch.tensor([len(token) for token in encoded]).cumsum(0),
            "vocab_rows": torch.bincount(tokens, minlength=len(VOCAB))}  # fmt: skip
    write_tensors(folder / "features.safetensors", arrays)
    write_tensors(folder / "tokens.safetensors", text)
    write_json(folder / "manifest.json", {
        "format": FORMAT, "version": VERSION, "model": {"name": "none", "n_layers": 6}, "shards": "0123456789abcdef", "text": None,
        "dictionary": {"fingerprint": "f" * 16, "site": "blocks.3.mlp.hook_in", "site_out": "blocks.3.mlp.hook_in", "folder": None},
        "context": BLOCK, "bos": 0, "seed": 0, "position_width": 1, "token_error": 0, "before": fakes.BEFORE, "after": fakes.AFTER,
        "rows": rows, "kept_rows": rows, "codes": writer.finish()})  # fmt: skip
    return FeatureStore.open(folder)


def _activations(tokens: torch.Tensor, positions: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """`[row latent]` by the rules above, with values over several bins."""
    previous = torch.cat([tokens[:1], tokens[:-1]])
    is_inside = positions > 0
    fires = torch.stack([
        tokens == 0, (tokens >= 4) & (tokens <= 6), (tokens == 1) & (previous == 2), torch.zeros_like(is_inside),
        is_inside, torch.rand(len(tokens), generator=generator) < 1 / 30, torch.zeros_like(is_inside), tokens == 3,
    ], 1) & is_inside[:, None]  # fmt: skip
    fires[[100, 1300, 4000], RARE] = True
    return fires * (torch.randn(fires.shape, generator=generator) * 0.7 + 1).exp()
