"""Every form and variant of a dictionary of another library, by name."""

from collections.abc import Callable
from pathlib import Path

from saes_formats_files import (
    Sample,
    circuit_tracer_plt,
    dictionary_learning,
    gemma_scope,
    gemma_scope_2,
    llama_scope,
    llama_scope_r1,
    llamascopium,
    saelens,
    sparsify,
    state_dict,
)
from saes_formats_layers import (
    circuit_tracer_clt,
    crosscoder_fork,
    gemma_scope_2_clt,
    llamascopium_clt,
    llamascopium_crosscoder,
)

SAMPLES: dict[str, Callable[[Path], Sample]] = {
    **{f"saelens {kind}": lambda folder, kind=kind: saelens(folder, kind)
       for kind in ("batchtopk", "gated", "jumprelu_skip_transcoder", "old")},
    "sparsify": sparsify,
    "sparsify transcoder": lambda folder: sparsify(folder, True),
    "sparsify skip": lambda folder: sparsify(folder, True, True),
    **{
        f"dictionary_learning {name}": lambda folder, name=name: dictionary_learning(folder, name)
        for name in ("AutoEncoder", "AutoEncoderNew", "GatedAutoEncoder", "AutoEncoderTopK", "BatchTopKSAE",
                     "MatryoshkaBatchTopKSAE", "JumpReluAutoEncoder")
    },
    "dictionary_learning crosscoder": lambda folder: crosscoder_fork(folder, threshold=False),
    "dictionary_learning crosscoder sum": lambda folder: crosscoder_fork(folder, 1),
    "dictionary_learning crosscoder together": lambda folder: crosscoder_fork(folder, 2),
    "dictionary_learning crosscoder none": lambda folder: crosscoder_fork(folder, 4),
    "gemma_scope": gemma_scope,
    "gemma_scope_2 affine": gemma_scope_2,
    "gemma_scope_2 transcoder": lambda folder: gemma_scope_2(folder, affine=False),
    "gemma_scope_2 resid": lambda folder: gemma_scope_2(folder, "resid_post", False),
    "gemma_scope_2 clt": gemma_scope_2_clt,
    "circuit_tracer clt": circuit_tracer_clt,
    "circuit_tracer clt relu": lambda folder: circuit_tracer_clt(folder, False),
    **{f"circuit_tracer plt {rule}": lambda folder, rule=rule: circuit_tracer_plt(folder, rule) for rule in ("relu", "topk", "jumprelu")},
    "llama_scope": llama_scope,
    "llama_scope r1": llama_scope_r1,
    **{
        f"llamascopium {rule} {norms} {dataset}": lambda folder, a=(rule, norms, dataset): llamascopium(folder, *a)
        for rule in ("relu", "topk", "jumprelu") for norms in (True, False) for dataset in (True, False)
    },
    "llamascopium crosscoder": llamascopium_crosscoder,
    **{f"llamascopium clt {rule} {dataset}": lambda folder, a=(rule, dataset): llamascopium_clt(folder, *a)
       for rule in ("relu", "topk", "jumprelu") for dataset in (True, False)},
    **{kind: lambda folder, kind=kind: state_dict(folder, kind) for kind in ("goodfire", "deepseek_r1", "qwen_scope", "openai")},
}  # fmt: skip
"""Every form and variant; the first word is the name of its format."""
