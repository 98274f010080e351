"""Run by test_saes_formats_interop.py where SAELens is: reads folders of ours with its code, and writes folders of its own.

`python their_saelens.py FOLDER`: in FOLDER lie `ours/NAME` (dictionaries) and `x.safetensors`. It leaves `read/NAME.safetensors` (codes
and reconstruction, or the name of the error in `read/NAME.refused`) and `theirs/NAME` with `theirs/NAME.safetensors`.
"""

import sys
import warnings
from pathlib import Path

import torch
from sae_lens import SAE
from sae_lens.registry import get_sae_class, get_sae_training_class
from safetensors.torch import load_file, save_file

warnings.simplefilter("ignore")
D, F, K = 12, 24, 4
INFERENCE = {
    "standard": dict(),
    "standard raw": dict(apply_b_dec_to_input=False),
    "topk": dict(k=K),
    "topk rescaled": dict(k=K, rescale_acts_by_decoder_norm=True),
    "topk raw": dict(k=K, apply_b_dec_to_input=False),
    "gated": dict(),
    "gated raw": dict(apply_b_dec_to_input=False),
    "jumprelu": dict(),
    "jumprelu raw": dict(apply_b_dec_to_input=False),
    "jumprelu hook_z": dict(reshape_activations="hook_z"),
    "transcoder": dict(d_out=7, apply_b_dec_to_input=False),
    "skip_transcoder": dict(d_out=7, apply_b_dec_to_input=False),
    "jumprelu_transcoder": dict(d_out=7, apply_b_dec_to_input=False),
    "jumprelu_skip_transcoder": dict(d_out=7, apply_b_dec_to_input=False),
    "abstopk": dict(k=K),
    "matching_pursuit": dict(),
}
TRAINING = {
    "standard": dict(),
    "topk": dict(k=K),
    "gated": dict(),
    "jumprelu": dict(),
    "batchtopk": dict(k=K),
    "batchtopk unscaled": dict(k=K, rescale_acts_by_decoder_norm=False),
    "matryoshka_batchtopk": dict(k=K, matryoshka_widths=[6, F]),
}


def filled(sae, seed):
    """Random numbers in every parameter, thresholds above zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sae.named_parameters():
            numbers = 0.3 * torch.randn(parameter.shape, generator=generator)
            if "threshold" in name:
                numbers = numbers.abs().log() if "log" in name else numbers.abs()
                numbers[:3] = -0.2 if "log" not in name else -3.0
            parameter.copy_(numbers)
        if hasattr(sae, "topk_threshold"):
            sae.topk_threshold.fill_(0.45)
    return sae


def shaped(x, sae):
    """Heads and their dimensions apart, where it flattens them."""
    return x.unflatten(-1, (3, 4)) if sae.cfg.reshape_activations == "hook_z" else x


def kept(sae, x, path):
    """What it computes."""
    with torch.no_grad():
        x = shaped(x, sae)
        codes, out = sae.encode(x), sae(x)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({"codes": codes.contiguous(), "out": (out.flatten(-2) if out.ndim == 3 else out).contiguous()}, path)


def read(base, x):
    """Every folder of ours, by its code."""
    (base / "read").mkdir()
    for folder in sorted((base / "ours").iterdir()):
        try:
            sae = SAE.load_from_disk(folder)
        except Exception as error:
            (base / "read" / f"{folder.name}.refused").write_text(f"{type(error).__name__}: {error}")
            continue
        kept(sae, x, base / "read" / f"{folder.name}.safetensors")


def write(base, x):
    """Finished ones and checkpoints, of each architecture."""
    for seed, (name, options) in enumerate(INFERENCE.items()):
        made, config = get_sae_class(name.split()[0])
        sae = filled(made(config(d_in=D, d_sae=F, **options)), seed)
        sae.cfg.metadata.hook_name = "blocks.1.attn.hook_z" if "hook_z" in name else "blocks.1.hook_resid_post"
        if "transcoder" in name:
            sae.cfg.metadata.hook_name_out = "blocks.1.hook_mlp_out"
        sae.save_model(base / "theirs" / name)
        kept(sae, x, base / "theirs" / f"{name}.safetensors")
    for seed, (name, options) in enumerate(TRAINING.items()):
        made, config = get_sae_training_class(name.split()[0])
        sae = filled(made(config(d_in=D, d_sae=F, **options)), 100 + seed)
        sae.cfg.metadata.hook_name = "blocks.1.hook_resid_post"
        sae.save_inference_model(base / "theirs" / f"finished {name}")
        finished = SAE.load_from_disk(base / "theirs" / f"finished {name}")
        kept(finished, x, base / "theirs" / f"finished {name}.safetensors")
        sae.save_model(base / "theirs" / f"checkpoint {name}")
        # In training batchtopk chooses over its batch, and jumprelu lets what is below zero pass a threshold below it; what such a
        # checkpoint means on single tokens is what it is saved as when it is finished.
        trained = name in ("standard", "topk", "gated")
        kept(sae if trained else finished, x, base / "theirs" / f"checkpoint {name}.safetensors")


if __name__ == "__main__":
    base = Path(sys.argv[1])
    x = load_file(base / "x.safetensors")["x"]
    read(base, x)
    write(base, x)
