"""What caching costs beside the bare forward pass that it cannot do without: writer, checks, hashes and flushing included.

Of each model the same batches are run three ways, one after the other in every round, so that a neighbour on the same cores
slows all of them: `bare`, the model alone up to the layer after the site; `cache`, from blocks of tokens to a finished folder
on the disk; for a real model `text`, the same from text, so with the tokenizer. `ratio` is the median over rounds of the wall
time over that of the bare pass, `cpu_ratio` the same in CPU time, which counts the writer's own thread whole. Neighbours only
ever add time, so the promise is about `best_ratio`, the quickest round of each: at most 1.10.

Short documents once more, padded and packed: tokens of text a second, and what packing gains.
"""

from __future__ import annotations

import contextlib
import itertools
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from timing import load, spread
from unweave.saes import bundled, cache, load_model
from unweave.saes.models import faster_dtype
from unweave.saes.packing import assemble, batches
from unweave.saes.plain_modules import PlainModel, Reached
from unweave.saes.text import Block, token_blocks

CONTEXT, BATCH, ROUNDS, PROMISE = 128, 8, 9, 1.10
TOY_BATCHES, REAL_BATCHES = 20, 3
SHORT = 20  # tokens of a short document


def run(rounds: int = ROUNDS, real: bool = True) -> list[dict[str, Any]]:
    """A row for each model and way, then one for packing."""
    rows = compare("gpt2 4 x 256", toy(), "blocks.2.hook_resid_post", TOY_BATCHES, rounds)
    if real:
        model = load_model("smollm2-135m", dtype=faster_dtype())
        rows += compare("smollm2-135m", model, "blocks.15.hook_resid_post", REAL_BATCHES, rounds, bundled())
    return [*rows, packed(toy(), rounds)]


def toy() -> PlainModel:
    """A GPT-2 of 4 layers and width 256 with random weights, and no tokenizer."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=4096, n_embd=256, n_layer=4, n_head=4, n_positions=CONTEXT, bos_token_id=0, eos_token_id=0
    )
    return PlainModel(GPT2LMHeadModel(config).eval().requires_grad_(False))


def compare(
    name: str, model: Any, site: str, count: int, rounds: int, texts: list[Any] | None = None
) -> list[dict[str, Any]]:
    """Bare, cached and, where there are texts, cached from text: medians over rounds, and ratios to bare within a round."""
    blocks = list(itertools.islice(full_blocks(model, texts), count * BATCH))
    tokens = sum(len(block.tokens) for block in blocks)
    given = [block.tokens for block in blocks]
    run_bare = bare(model, site, blocks)
    ways: dict[str, Callable[[], Any]] = {"bare": run_bare, "cache": lambda: cached(model, given, site, tokens)}
    if texts is not None:
        ways["text"] = lambda: cached(model, texts, site, tokens)
    times: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
    for number in range(rounds + 1):
        for way, call in ways.items():
            wall, cpu = time.perf_counter(), time.process_time()
            call()
            if number:  # the first warms up
                times[way].append((time.perf_counter() - wall, time.process_time() - cpu))
    return [row(name, way, tokens, found, times["bare"]) for way, found in times.items()]


def full_blocks(model: Any, texts: list[Any] | None) -> Any:
    """Blocks of CONTEXT tokens: of the texts (the shorter ones too), or random."""
    if texts is not None:
        return token_blocks(model, texts, CONTEXT)
    ids = torch.randint(0, 4096, (TOY_BATCHES * BATCH, CONTEXT), generator=torch.Generator().manual_seed(0))
    return (Block(row, number) for number, row in enumerate(ids))


def bare(model: Any, site: str, blocks: list[Block]) -> Callable[[], None]:
    """The forward passes alone, up to the same layer; nothing is kept."""
    padded = [assemble(some, BATCH) for some in batches(iter(blocks), BATCH)]

    @torch.no_grad()
    def forward() -> None:
        for one in padded:
            if not isinstance(model, PlainModel):
                model(one.tokens, stop_at_layer=int(site.split(".")[1]) + 1)
                continue
            with model.reaching([site], lambda site, value: None), contextlib.suppress(Reached):
                model.forward(one.tokens)

    return forward


def cached(model: Any, given: Any, site: str, tokens: int, **options: Any) -> int:
    """Cache into a folder that is removed; bytes of its shards."""
    with tempfile.TemporaryDirectory() as folder:
        cache(
            model,
            given,
            [site],
            Path(folder) / "shards",
            tokens,
            context=CONTEXT,
            batch=BATCH,
            progress=False,
            **options,
        )
        return sum(path.stat().st_size for path in (Path(folder) / "shards").iterdir())


def row(
    name: str, way: str, tokens: int, times: list[tuple[float, float]], floor: list[tuple[float, float]]
) -> dict[str, Any]:
    """Seconds and their ratios to those of the bare pass of the same round."""
    wall = spread([one / other for (one, _), (other, _) in zip(times, floor, strict=True)])
    cpu = spread([one / other for (_, one), (_, other) in zip(times, floor, strict=True)])
    seconds = spread([one for one, _ in times]).median
    return {
        "model": name, "way": way, "tokens": tokens, "threads": torch.get_num_threads(), "load": load(),
        "tokens_per_s": tokens / seconds, "best_ratio": min(times)[0] / min(floor)[0], "ratio": wall.median, "ratio_p20": wall.p20,
        "ratio_p80": wall.p80, "cpu_ratio": cpu.median,
    }  # fmt: skip


def packed(model: PlainModel, rounds: int) -> dict[str, Any]:
    """Documents of 3 to 2 x SHORT tokens, padded and packed: the ratio is packed / padded, in wall and in CPU time."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(3, 2 * SHORT, (TOY_BATCHES * 32,), generator=generator).tolist()
    given = [torch.randint(0, 4096, (length,), generator=generator) for length in lengths]
    tokens, site = sum(lengths), "blocks.2.hook_resid_post"
    times: dict[bool, list[tuple[float, float]]] = {False: [], True: []}
    for number in range(rounds + 1):
        for pack in times:
            wall, cpu = time.perf_counter(), time.process_time()
            cached(model, given, site, tokens, pack=pack)
            if number:
                times[pack].append((time.perf_counter() - wall, time.process_time() - cpu))
    return row("gpt2 4 x 256", "packed", tokens, times[True], times[False])


def passed(rows: list[dict[str, Any]]) -> str | None:
    """What breaks the promise, None if nothing does."""
    slow = [
        f"{row['model']} {row['best_ratio']:.2f}"
        for row in rows
        if row["way"] == "cache" and row["best_ratio"] > PROMISE
    ]
    return f"caching costs more than {PROMISE} of the bare pass: {', '.join(slow)}" if slow else None
