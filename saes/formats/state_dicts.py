"""Single files that are a state dict and nothing else: the same SAE under other names, some of it turned.

| form | encoder | decoder | rule | encodes |
|---|---|---|---|---|
| Goodfire (`.pt`, `.pth`) | encoder_linear.weight [latent d], .bias | decoder_linear.weight [d latent], .bias | relu | x |
| DeepSeek-R1 (`.pt`) | encoder.weight [latent d], .bias | decoder.weight [d latent], .bias | relu | x |
| Qwen Scope (`layer{n}.sae.pt`) | W_enc [latent d], b_enc | W_dec [d latent], b_dec | topk, k from `L0_{k}` in the repository's name | x |
| OpenAI (`{layer}.pt`) | encoder.weight [latent d], latent_bias | decoder.weight [d latent], pre_bias | relu | x - pre_bias |

OpenAI's TopK files are refused: they normalise each token by its own mean and deviation, and undo it after decoding, which weights
cannot hold. Such a file does not name its site: it follows from the layer in its name (Goodfire, DeepSeek-R1, Qwen), or is given.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..errors import UserError
from .build import Given, single, turned
from .files import PICKLES, absent, plain, read_file
from .form import Format, Look
from .places import layer_in, sparsity_in

if TYPE_CHECKING:
    from ..dictionary import Dictionary

GOODFIRE = {
    f"{ours}_linear.{part}": f"{kind}_{ours[:3]}"
    for ours in ("encoder", "decoder")
    for part, kind in (("weight", "W"), ("bias", "b"))
}
DEEPSEEK = {name.replace("_linear", ""): ours for name, ours in GOODFIRE.items()}
QWEN = {name: name for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
OPENAI = {"encoder.weight": "W_enc", "latent_bias": "b_enc", "decoder.weight": "W_dec", "pre_bias": "b_dec"}
STATISTICS = ("stats_last_nonzero", "latents_activation_frequency", "latents_mean_square")


def _has(names: dict[str, str]) -> Callable[[Look], bool]:
    return lambda seen: seen.path.suffix in PICKLES and set(names) <= seen.names


def _tensors(
    path: Path, names: dict[str, str], optional: tuple[str, ...] = ()
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    found = read_file(path, "a dictionary's state dict")
    absent(found, path, names, optional)
    tensors = {names[name]: tensor for name, tensor in plain(found, path, names).items()}
    return {**tensors, "W_dec": turned(tensors["W_dec"])}, found


def _resid(path: Path) -> tuple[str, ...]:
    layer = layer_in(path)
    return () if layer is None else (f"blocks.{layer}.hook_resid_post",)


def _relu(names: dict[str, str]) -> Callable[[Path, Given], Dictionary]:
    def load(path: Path, given: Given) -> Dictionary:
        return single(path, _tensors(path, names)[0], "relu", given, site=_resid(path))

    return load


def load_qwen(path: Path, given: Given) -> Dictionary:
    """A TopK SAE whose k is in the name of its repository; UserError where no name says it."""
    k = given.k or sparsity_in(path)
    if not k:
        raise UserError(
            f"expected the k of {path}, which its repository's name has (L0_50); got none; call load(..., k=50)"
        )
    tensors = _tensors(path, QWEN)[0]
    if tensors["W_enc"].ndim == 2 and k > len(tensors["W_enc"]):
        raise UserError(f"expected k of at most the {len(tensors['W_enc'])} latents in {path}; got {k}; give another")
    return single(path, tensors, "topk", given, k=k, site=_resid(path))


def load_openai(path: Path, given: Given) -> Dictionary:
    """A ReLU SAE; UserError for TopK, whose normalisation weights cannot hold."""
    tensors, found = _tensors(path, OPENAI, (*STATISTICS, "activation", "activation_state_dict"))
    activation = found.get("activation", "ReLU")
    if activation != "ReLU":
        raise UserError(
            f"{path} is an OpenAI {str(activation)[:40]} autoencoder, which normalises each token by its own mean and deviation: "
            "no dictionary here can express that; its ReLU ones are loaded"
        )
    return single(path, tensors, "relu", given, centred=True)


FORMATS = (
    Format("goodfire", ".pt or .pth with encoder_linear.weight", _has(GOODFIRE), _relu(GOODFIRE)),
    Format("openai", ".pt with pre_bias and latent_bias", _has(OPENAI), load_openai),
    Format("deepseek_r1", ".pt with encoder.weight and decoder.bias", _has(DEEPSEEK), _relu(DEEPSEEK)),
    Format("qwen_scope", ".pt with W_enc and W_dec", _has(QWEN), load_qwen),
)
