"""Run by test_saes_formats_interop.py where sparsify is; the folders are told in their_saelens.py."""

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from sparsify import SparseCoder, SparseCoderConfig

D, F, K = 12, 24, 4
KINDS = {
    "sae": dict(num_latents=F),
    "sae by factor": dict(num_latents=0, expansion_factor=2),
    "transcoder": dict(num_latents=F, transcode=True),
    "skip": dict(num_latents=F, transcode=True, skip_connection=True),
}


def kept(coder, x, path):
    """What it computes, codes dense."""
    with torch.no_grad():
        values, indices, _ = coder.encode(x)
        out = coder(x).sae_out
    codes = torch.zeros(len(x), coder.num_latents, dtype=values.dtype).scatter(1, indices, values)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({"codes": codes, "out": out}, path)


def main(base):
    """Folders of ours, then its own."""
    x = load_file(base / "x.safetensors")["x"]
    (base / "read").mkdir()
    for folder in sorted((base / "ours").iterdir()):
        kept(SparseCoder.load_from_disk(folder), x, base / "read" / f"{folder.name}.safetensors")
    for seed, (name, options) in enumerate(KINDS.items()):
        coder = SparseCoder(D, SparseCoderConfig(k=K, **options))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in coder.parameters():
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
        folder = base / "theirs" / name
        coder.save_to_disk(folder)
        kept(coder, x, base / "theirs" / f"{name}.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
