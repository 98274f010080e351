"""Diffs made from nothing but numbers, by every method, with tokens, notes and names that attack the page if they are to."""

import fakes
import torch
from unweave.audit.diffing.result import Diff

LATENTS = {"crosscoder": 64, "mean": 64, "stagewise": 64, "lens": 40}
HUGE = 10**400  # a whole number that no float holds


def share(value, spread=0.02, controls=9):
    """A share as a manifest has it: random latents around 0."""
    drawn = [spread * (place - controls // 2) / controls for place in range(controls)]
    above = sum(each >= value for each in drawn)
    interval = [value - 0.05, value + 0.04]
    p = (1 + above) / (1 + controls) if controls else None
    return {"share": value, "interval": interval, "controls": drawn, "p": p}


def columns_of(method, count, generator):
    """Every column of a method; row 0 never fired, rows 1 to 19 are found."""
    normal = torch.randn(count, generator=generator, dtype=torch.float64)
    at = torch.arange(count)
    q = torch.where((at > 0) & (at < 20), 0.001 * at, 0.5).double()
    found = q <= 0.05
    found[0] = False
    score = normal * 10
    common = {"score": score, "q": q, "p": q / 2, "is_found": found}
    if method == "lens":
        return common | {
            "position": at % 5 + 1,
            "token": at + 3,
            "length": normal.abs(),
            "random_high": torch.full((count,), 3.0),
        }
    density = torch.rand(count, generator=generator, dtype=torch.float64) / 10
    common |= {"d": normal, "d_low": normal - 0.2, "d_high": normal + 0.3, "density": density}
    if method == "mean":
        return common | {"mean_a": normal.abs(), "mean_b": normal.abs() + normal, "change": normal}
    if method == "stagewise":
        return common | {"cosine": density, "cosine_control": density + 0.5, "rotation": normal, "mean": normal.abs()}
    kinds = at % 6
    norms = torch.tensor([0.5, 0.5, 0.05, 0.95, 0.97, 0.02], dtype=torch.float64)[kinds]
    ratios = torch.rand(count, generator=generator, dtype=torch.float64)
    ratios[0] = torch.nan
    is_sound = (kinds > 0) & (kinds < 4)
    return common | {"score": score.abs(), "class": kinds, "norm_difference": norms, "cosine": density, "nu_r": ratios,
                     "nu_eps": ratios / 2,
                     "mean": normal.abs(), "is_found": found & is_sound}  # fmt: skip


def diff(method="crosscoder", *, hostile=False, seed=0, fingerprint="f" * 16, folder=None):
    """A Diff by `method`, of the dictionary that `fakes.store` names; saved where a folder is given."""
    count = LATENTS[method]
    columns = columns_of(method, count, torch.Generator().manual_seed(seed))
    bad = fakes.HOSTILE
    texts = [text.replace("\ud800", "\x07") for text in bad]  # a file holds no half of a surrogate pair
    names = texts[:2] if hostile else ["small", "small-tuned"]
    manifest = {
        "method": method,
        "models": {side: {"name": name, "n_layers": 6} for side, name in zip("ab", names, strict=True)},
        "sites": dict.fromkeys("ab", texts[3] if hostile else "blocks.3.hook_resid_post"),
        "text": {"rows": 2000, "documents": 50, "documents_measured": 30, **({texts[1]: texts} if hostile else {})},
        "settings": {
            "fdr": 0.05,
            "seed": 0,
            "target": texts[0] if hostile else None,
            **({texts[3]: HUGE} if hostile else {}),
        },
        "is_aligned": False,
        "dictionaries": {"dictionary": fingerprint} if method != "lens" else {},
        "notes": texts if hostile else ["Something to know before believing the numbers."],
    }
    if method == "lens":
        manifest["strings"] = {str(row + 3): texts[row % len(texts)] if hostile else f" w{row}" for row in range(count)}
    else:
        manifest["fires_on"] = {str(row): texts if hostile else [f" w{row}", " the"] for row in range(1, 50)}
        manifest["causal"] = [
            {"latents": [3, 7], "patched": share(0.6), "removed": share(0.4)},
            {"latents": [3], "patched": share(0.5), "removed": share(-0.3)},
            {
                "latents": [7],
                "patched": {"share": None, "interval": None, "controls": [], "p": None},
                "removed": share(0.01),
            },
            {"latents": [], "patched": share(0.9, controls=0), "removed": share(0.8, controls=0)},
        ]
    if hostile:
        columns |= {"__proto__": columns["score"], "constructor": columns["score"], texts[0]: columns["score"]}
        manifest["causal"] = [
            *manifest.get("causal", []),
            texts[0],
            {"latents": texts, "patched": texts[0], "removed": {"share": HUGE, "interval": texts}},
        ]
    found = Diff(manifest, columns)
    return found if folder is None else found.save(folder)
