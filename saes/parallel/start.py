"""Join the processes that torchrun started.

    torchrun --nproc-per-node 8 -m unweave.saes.cli ACTIVATIONS --out RUN --latent-ranks 4       2 data ranks x 4 latent ranks

Nothing of ours stands between: the environment that torchrun sets, a process group, a DeviceMesh (data x latent). A process that
torchrun did not start, or that is the only one, is `Ranks`, alone.
"""

from __future__ import annotations

import os

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from ..config import TrainConfig
from ..errors import UserError
from .ranks import Mesh, Ranks


def processes() -> int:
    """How many processes train together: those of the process group, else those that torchrun started."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_world_size()
    return int(os.environ.get("WORLD_SIZE", "1"))


def own_device(device: torch.device) -> torch.device:
    """The device of this process: of several GPUs of a machine the one that torchrun numbered it with."""
    if device.type == "cuda" and device.index is None and processes() > 1:
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    return device


def ranks_of_this_run(config: TrainConfig, latent_ranks: int, device: torch.device) -> Ranks:
    """This process's place among those that train together, `latent_ranks` of them sharing the latents of a dictionary.

    Begins the process group where torchrun left it to us. UserError where the processes, the batch or the latents cannot be shared out.
    """
    world, shape = processes(), config.dictionary
    if latent_ranks < 1 or world % latent_ranks:
        raise UserError(
            f"expected latent ranks that divide the {world} processes; got {latent_ranks}; "
            "start more with torchrun, or change --latent-ranks"
        )
    data = world // latent_ranks
    if config.batch % data:
        raise UserError(
            f"expected a batch that {data} data ranks can share; got {config.batch}; take a multiple of {data}"
        )
    if shape.block_latents % latent_ranks:
        raise UserError(
            f"expected latents that {latent_ranks} ranks can share; got {shape.block_latents}; take a multiple of {latent_ranks}"
        )
    if latent_ranks > 1 and config.optimizer == "factored":
        raise UserError(
            "expected --optimizer adam with --latent-ranks: a factored moment is a mean over all latents; change one"
        )
    if world == 1:
        return Ranks()
    if not dist.is_initialized():
        if device.type == "cuda":
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    mesh = init_device_mesh(device.type, (data, latent_ranks), mesh_dim_names=("data", "latent"))
    return Mesh(mesh, shape.block_latents)
