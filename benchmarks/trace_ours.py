"""Our side of the comparison of tracers: `python trace_ours.py CASE OUT REPEATS SELECT` traces the case and writes OUT.

OUT.safetensors has what both sides write: `nodes [node 4]` (kind, layer, position, index; the kinds are KINDS below) and
the edges among them (`target`, `source`, `weight`). OUT.json has the times and the memory.
"""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")
sys.path.append(str(Path(__file__).parent))

import torch
from safetensors.torch import save_file
from trace_case import Case, Loaded, load_case
from trace_meter import measure

KINDS = ("token", "error", "latent", "logit")


def main(case_path: Path, out: Path, repeats: int, select: Any) -> None:
    """Trace the case, measured."""
    from unweave.circuits import trace

    loaded = load_case(case_path)
    model, dictionaries = boot(loaded), transcoders(loaded)
    case, prompt = loaded.case, loaded.prompt
    del loaded

    def run() -> Any:
        return trace(model, prompt, dictionaries, max_features=case.nodes, select=select)

    graph = measure(run, lambda: model(prompt[None]), repeats, out.with_suffix(".json"))
    print(f"residual {graph.residual:.1e}")
    save_file(tensors(graph), out.with_suffix(".safetensors"))


def boot(loaded: Loaded) -> Any:
    """The case's model as a TransformerBridge."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformer_lens.model_bridge import TransformerBridge
        from transformers import LlamaConfig, LlamaForCausalLM

        case = loaded.case
        config = LlamaConfig(
            vocab_size=case.vocab, hidden_size=case.d, intermediate_size=case.mlp, num_hidden_layers=case.layers,
            num_attention_heads=case.heads, max_position_embeddings=case.context, rms_norm_eps=1e-6,
            bos_token_id=0, eos_token_id=1, pad_token_id=1, tie_word_embeddings=False,
        )  # fmt: skip
        config.architectures, config._attn_implementation = ["LlamaForCausalLM"], "eager"
        hf = LlamaForCausalLM(config).eval().requires_grad_(False)
        hf.load_state_dict(loaded.model)
        model = TransformerBridge.boot_transformers(
            "llama-random", hf_model=hf, tokenizer=tokenizer(case), device="cpu", dtype=torch.float32
        )
    return model.eval().requires_grad_(False)


def tokenizer(case: Case) -> Any:
    """One word per token, `<s>` = 0."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<s>": 0, "</s>": 1, "<unk>": 2} | {f"w{i}": i for i in range(3, case.vocab)}
    core = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    special = dict(bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="</s>")
    wrapped = PreTrainedTokenizerFast(tokenizer_object=core, **special)
    wrapped.init_kwargs.update(name_or_path="", add_bos_token=True)  # the bridge looks both up
    return wrapped


def transcoders(loaded: Loaded) -> list[Any]:
    """The case's transcoders as dictionaries."""
    from unweave.saes import Dictionary, DictionaryConfig

    case = loaded.case
    sites = [(f"blocks.{layer}.mlp.hook_in", f"blocks.{layer}.mlp.hook_out") for layer in range(case.layers)]
    configs = [DictionaryConfig(site=(i,), site_out=(o,), latents=case.latents, k=case.k) for i, o in sites]
    return [Dictionary(config, own, {}) for config, own in zip(configs, loaded.transcoders, strict=True)]


def tensors(graph: Any) -> dict[str, torch.Tensor]:
    """The nodes that both tracers have, and the edges among them."""
    nodes = [
        (KINDS.index(node.kind), node.layer, node.position, node.index) if node.kind in KINDS else (-1, 0, 0, 0)
        for node in graph.nodes
    ]
    edges = graph.edges
    return {"nodes": torch.tensor(nodes), "target": edges.target, "source": edges.source, "weight": edges.weight}


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
