"""Run by test_saes_formats_interop.py where dictionary_learning is; the folders are told in their_saelens.py.

The library's package imports nnsight, which only caching activations needs: an empty module stands in its place.
"""

import json
import sys
import types
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

stand_in = types.ModuleType("nnsight")
stand_in.LanguageModel = object
sys.modules["nnsight"] = stand_in

from dictionary_learning.dictionary import AutoEncoder, AutoEncoderNew, GatedAutoEncoder, JumpReluAutoEncoder  # noqa: E402
from dictionary_learning.trainers.batch_top_k import BatchTopKSAE  # noqa: E402
from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKSAE  # noqa: E402
from dictionary_learning.trainers.top_k import AutoEncoderTopK  # noqa: E402

D, F, K = 12, 24, 4
CLASSES = {
    "AutoEncoder": lambda: AutoEncoder(D, F),
    "AutoEncoderNew": lambda: AutoEncoderNew(D, F),
    "GatedAutoEncoder": lambda: GatedAutoEncoder(D, F),
    "AutoEncoderTopK": lambda: AutoEncoderTopK(D, F, K),
    "BatchTopKSAE": lambda: BatchTopKSAE(D, F, K),
    "MatryoshkaBatchTopKSAE": lambda: MatryoshkaBatchTopKSAE(D, F, K, [6, 18]),
    "JumpReluAutoEncoder": lambda: JumpReluAutoEncoder(D, F),
}


def opened(folder):
    """By its own way of loading, the class that the config names; AutoEncoder without rescaling its latents."""
    name = json.loads((folder / "config.json").read_text())["trainer"]["dict_class"]
    kind = type(CLASSES[name]())
    more = {"normalize_decoder": False} if name == "AutoEncoder" else {}
    return kind.from_pretrained(str(folder / "ae.pt"), **more)


def kept(own, x, path):
    """What it computes."""
    with torch.no_grad():
        codes = own.encode(x)
        out = own.decode(codes)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({"codes": codes.contiguous(), "out": out.contiguous()}, path)


def main(base):
    """Folders of ours, then its own."""
    x = load_file(base / "x.safetensors")["x"]
    (base / "read").mkdir()
    for folder in sorted((base / "ours").iterdir()):
        kept(opened(folder), x, base / "read" / f"{folder.name}.safetensors")
    for seed, (name, make) in enumerate(CLASSES.items()):
        own, generator = make(), torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for key, parameter in own.named_parameters():
                numbers = 0.3 * torch.randn(parameter.shape, generator=generator)
                parameter.copy_(numbers.abs() if key == "threshold" else numbers)
            if "BatchTopK" in name:
                own.threshold.fill_(0.45)
        for told in (True, False) if name in ("AutoEncoder", "JumpReluAutoEncoder") else (True,):
            folder = base / "theirs" / (name if told else f"{name} alone")
            folder.mkdir(parents=True)
            torch.save(own.state_dict(), folder / "ae.pt")
            trainer = {"dict_class": name, "activation_dim": D, "dict_size": F, "layer": 1, "lm_name": "m"}
            if told:
                trainer |= {"k": K} if "TopK" in name else {}
                (folder / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": {"ctx_len": 8}}))
            kept(own, x, folder.with_name(f"{folder.name}.safetensors"))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
