"""One rank of several, started by parallel_ranks.py: `python parallel_host.py JOB RESULT`; JOB is JSON, RESULT what rank 0 found.

A job is a list of cases: how the ranks are arranged, the training, which latents are dead, how many steps.
"""

import json
import sys

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch.distributed.device_mesh import init_device_mesh
from training_toys import config, pair_of, state_of, tied
from unweave.kernels import encode_topk
from unweave.saes import plain
from unweave.saes import step as fast
from unweave.saes.parallel.batch_topk import shared_batch_topk
from unweave.saes.parallel.ranks import Mesh
from unweave.saes.parallel.shares import gathered, share_of
from unweave.saes.state import take_step


def run(case: dict) -> dict[str, torch.Tensor]:
    own = config(case["rule"], case["layout"], **case["changes"])
    mesh = init_device_mesh("cpu", tuple(case["grid"]), mesh_dim_names=("data", "latent"))
    ranks = Mesh(mesh, own.dictionary.block_latents)
    dtype = getattr(torch, case["dtype"])
    state = state_of(own, case["dead"], ranks, dtype)
    update = fast.update if fast.applies(state) else plain.update
    metrics = []
    for number in range(case["steps"]):
        ranks.sent.clear()
        metrics.append(take_step(state, update, pair_of(own, 50 + number, ranks.share(own.batch), dtype)))
    found = gathered({**state.weights, "silent_tokens": state.silent_tokens}, own.dictionary.blocks, ranks)
    sent = torch.tensor([ranks.sent[name] for name in ("candidates", "outputs", "gradients")])
    return {**found, "metrics": torch.stack(metrics), "sent": sent, "smallest": state.smallest, "penalty": state.weight}


def select(grid: list[int], kind: str, k: int) -> dict[str, torch.Tensor]:
    """The dense codes that the ranks find together by BatchTopK, or TopK, among pre-activations full of ties."""
    mesh = init_device_mesh("cpu", tuple(grid), mesh_dim_names=("data", "latent"))
    x, W_enc, b_enc = tied(kind)
    ranks = Mesh(mesh, len(W_enc))
    x, W_enc, b_enc = x[ranks.share(len(x))], share_of(W_enc, 1, ranks), share_of(b_enc, 1, ranks)
    codes = {
        "batch": shared_batch_topk(x, W_enc, b_enc, k, ranks),
        "top": ranks.top(*encode_topk(x, W_enc, b_enc, min(k, len(W_enc))), k),
    }
    found = {}
    for name, (values, indices) in codes.items():
        dense = torch.zeros(len(x), len(W_enc), dtype=x.dtype).scatter_add_(1, indices, values)
        found[name] = torch.cat(ranks.gather(torch.cat(ranks.gather(dense, "latent"), 1), "data"))
    return found


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    with open(sys.argv[1]) as file:
        cases = json.load(file)
    found = {case["name"]: select(**case["select"]) if "select" in case else run(case) for case in cases}
    if dist.get_rank() == 0:
        flat = {f"{name}/{key}": tensor.contiguous() for name, of in found.items() for key, tensor in of.items()}
        save_file(flat, sys.argv[2])
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
