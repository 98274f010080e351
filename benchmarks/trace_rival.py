"""circuit-tracer's side of the comparison: `PYTHON trace_rival.py CASE OUT REPEATS BATCH`, with the interpreter that has it.

Written for circuit-tracer 0.5.0 (which takes transformer-lens 3.2 and transformers 4.57), through its public
classes: its replacement model is made from a HookedTransformerConfig, so nothing is fetched. Features read `mlp.hook_in`, write
`mlp.hook_out`; all else is its default (BATCH is 512, targets up to ten logits or a probability of .95). What is
written is described in trace_ours.py.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.append(str(Path(__file__).parent))

import torch
from safetensors.torch import save_file
from trace_case import Case, Loaded, load_case
from trace_meter import measure

TOKEN, ERROR, LATENT, LOGIT = range(4)


def main(case_path: Path, out: Path, repeats: int, batch: int) -> None:
    """Trace the case, measured."""
    from circuit_tracer.attribution.attribute import attribute

    loaded = load_case(case_path)
    model = boot(loaded)
    case, prompt = loaded.case, loaded.prompt
    del loaded

    def run() -> Any:
        return attribute(prompt, model, max_feature_nodes=case.nodes, batch_size=batch)

    graph = measure(run, lambda: model(prompt[None]), repeats, out.with_suffix(".json"))
    print(f"{len(graph.active_features)} active latents")
    save_file(tensors(graph, case), out.with_suffix(".safetensors"))


def boot(loaded: Loaded) -> Any:
    """The case's model with its transcoders, in their classes."""
    from circuit_tracer.replacement_model.replacement_model_transformerlens import TransformerLensReplacementModel
    from circuit_tracer.transcoder.activation_functions import TopK
    from circuit_tracer.transcoder.single_layer_transcoder import SingleLayerTranscoder, TranscoderSet
    from transformer_lens import HookedTransformerConfig

    case = loaded.case
    config = HookedTransformerConfig(
        n_layers=case.layers, d_model=case.d, n_heads=case.heads, d_head=case.d // case.heads, d_mlp=case.mlp,
        d_vocab=case.vocab, n_ctx=case.context, act_fn="silu", gated_mlp=True, normalization_type="RMS", final_rms=True,
        eps=1e-6, positional_embedding_type="rotary", rotary_dim=case.d // case.heads, init_weights=False, device="cpu",
        model_name="llama-random", dtype=torch.float32,
    )  # fmt: skip
    coders = {}
    for layer, weights in enumerate(loaded.transcoders):
        coder = SingleLayerTranscoder(case.d, case.latents, TopK(case.k), layer, dtype=torch.float32)
        coder.load_state_dict(weights)
        coders[layer] = coder
    model = TransformerLensReplacementModel.from_config(config, TranscoderSet(coders, "mlp.hook_in", "mlp.hook_out"))
    missing, unexpected = model.load_state_dict(renamed(loaded.model, case), strict=False)
    missing = [name for name in missing if not name.endswith(ALREADY_THERE)]
    if missing or unexpected:
        raise SystemExit(f"expected every weight of the model; missing {missing}, unexpected {unexpected}")
    # All that tracing token ids asks of a tokenizer.
    model.tokenizer = SimpleNamespace(all_special_ids=[0], padding_side="right", vocab_size=case.vocab, decode=str)
    return model


# Buffers and zero biases that the model makes itself, and the transcoders.
ALREADY_THERE = (
    "attn.mask", "attn.IGNORE", "attn.rotary_sin", "attn.rotary_cos", "attn.b_Q", "attn.b_K", "attn.b_V", "attn.b_O",
    "mlp.b_in", "mlp.b_out", "old_mlp.b_in", "old_mlp.b_out", "unembed.b_U", "old_unembed.b_U",
    "W_enc", "W_dec", "b_enc", "b_dec",
)  # fmt: skip


def renamed(model: dict[str, torch.Tensor], case: Case) -> dict[str, torch.Tensor]:
    """Weights by the names and in the layout of transformer-lens 3, inside the replacement model's wrappers."""
    heads, e = case.heads, case.d // case.heads
    out = {"embed.W_E": model["model.embed_tokens.weight"], "ln_final.w": model["model.norm.weight"]}
    out["unembed.old_unembed.W_U"] = model["lm_head.weight"].T
    for layer in range(case.layers):
        theirs, block = f"model.layers.{layer}.", f"blocks.{layer}."
        for name in "qkv":
            weight = model[f"{theirs}self_attn.{name}_proj.weight"]
            out[f"{block}attn.W_{name.upper()}"] = weight.reshape(heads, e, case.d).transpose(1, 2)
        out[f"{block}attn.W_O"] = model[f"{theirs}self_attn.o_proj.weight"].T.reshape(heads, e, case.d)
        for name, old in (("W_gate", "gate"), ("W_in", "up"), ("W_out", "down")):
            out[f"{block}mlp.old_mlp.{name}"] = model[f"{theirs}mlp.{old}_proj.weight"].T
        out[f"{block}ln1.w"] = model[f"{theirs}input_layernorm.weight"]
        out[f"{block}ln2.w"] = model[f"{theirs}post_attention_layernorm.weight"]
    return {name: tensor.contiguous() for name, tensor in out.items()}


def tensors(graph: Any, case: Case) -> dict[str, torch.Tensor]:
    """Nodes in the order of its matrix (features, errors by layer, tokens, logits) and the matrix's non-zero entries."""
    last = case.prompt - 1
    nodes = [(LATENT, *place) for place in graph.active_features[graph.selected_features].tolist()]
    nodes += [(ERROR, layer, position, -1) for layer in range(case.layers) for position in range(case.prompt)]
    nodes += [(TOKEN, -1, position, token) for position, token in enumerate(graph.input_tokens.tolist())]
    nodes += [(LOGIT, case.layers, last, target.vocab_idx) for target in graph.logit_targets]
    target, source = graph.adjacency_matrix.nonzero(as_tuple=True)
    return {
        "nodes": torch.tensor(nodes), "target": target, "source": source,
        "weight": graph.adjacency_matrix[target, source],
    }  # fmt: skip


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
