"""Checkpoints that every rank writes its share of, and that load on any number of ranks, one among them.

    checkpoint-00000400/shard-00001-model-….safetensors …     torch.distributed.checkpoint's safetensors storage
    checkpoint-00000400/about.json                            what the run says of itself; size and XXH3 of each file

The tensors of a run that have a row for each latent are DTensors, sharded over the latent ranks, one for each block of the dictionary;
the others are the same on all ranks, and one writes them. All ranks write into a folder with a temporary name, which gets its own
when every file is on the disk; so a killed rank leaves the checkpoint before.
"""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from xxhash import xxh3_128

from ..errors import UserError
from ..io import read_json, write_json
from ..runs.checkpoints import Checkpoints, Saved, read_checkpoint
from .ranks import ALONE, Mesh, Ranks
from .shares import is_shared_out, share_of

ABOUT = "about.json"


class ShardedCheckpoints(Checkpoints):
    """The checkpoints of a run by several ranks. Every rank calls every method, in the same order."""

    def __init__(self, folder: Path, keep: int, ranks: Mesh, blocks: int):
        super().__init__(folder, keep)
        self.ranks, self.blocks = ranks, blocks
        # A mesh of its own: what the writing thread sends must not get between what training sends.
        self.mesh = init_device_mesh("cpu", (ranks.data, ranks.latent), mesh_dim_names=("data", "latent"))
        self.group: Any = dist.new_group(backend="gloo")

    def _written(self, step: int, about: dict[str, Any], host: dict[str, Tensor]) -> Path:
        """Write this rank's share; the first rank gives the folder its name once all have."""
        from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
        from torch.distributed.checkpoint.state_dict_saver import save

        half, path = self.folder / f".tmp-checkpoint-{step:08d}", self.folder / f"checkpoint-{step:08d}"
        if self.ranks.is_first:
            for old in (half, path):
                shutil.rmtree(old, ignore_errors=True)
            half.mkdir(parents=True)
        dist.barrier(self.group)
        writer = HuggingFaceStorageWriter(str(half), save_distributed=True)
        save(self._pieces(host), storage_writer=writer, process_group=self.group)
        own = {file.name: summed(file) for file in half.glob(f"shard-{dist.get_rank() + 1:05d}-*")}
        every: list[Any] = [None] * self.ranks.size
        dist.all_gather_object(every, own, self.group)
        if self.ranks.is_first:
            files = {name: entry for one in every for name, entry in one.items()}
            write_json(half / ABOUT, {"about": about, "files": files})
            half.replace(path)
        dist.barrier(self.group)
        return path

    def _pieces(self, host: Mapping[str, Tensor]) -> dict[str, Tensor]:
        pieces: dict[str, Tensor] = {}
        for name, tensor in host.items():
            if is_shared_out(name):
                for number, piece in enumerate(tensor.chunk(self.blocks)):
                    pieces[f"{name}/{number}"] = self._placed(piece, Shard(0))
            else:
                pieces[name] = self._placed(tensor, Replicate())
        return pieces

    def _placed(self, tensor: Tensor, how: Any) -> DTensor:
        return DTensor.from_local(tensor.contiguous(), self.mesh, [Replicate(), how], run_check=False)

    def _read(self, path: Path) -> Saved:
        """This rank's part of a checkpoint; UserError, on every rank, if any of them finds it damaged."""
        problem, about, state, whole = None, {}, {}, {}
        try:
            if path.is_dir():
                about, state = examined(path, self.ranks, self._empty)
            else:
                about, whole = read_checkpoint(path)
        except UserError as error:
            problem = error
        if not self._all(problem is None):
            raise problem or UserError(f"expected a training checkpoint at {path}; another rank found it damaged")
        if path.is_dir():
            return about, loaded(path, state, self.group)
        return about, {
            name: share_of(tensor, self.blocks, self.ranks) if is_shared_out(name) else tensor
            for name, tensor in whole.items()
        }

    def _empty(self, name: str, size: list[int], dtype: torch.dtype) -> Tensor:
        """A place for this rank's part of a tensor."""
        if "/" not in name:
            return torch.empty(size, dtype=dtype)
        return self._placed(torch.empty(size[0] // self.ranks.latent, *size[1:], dtype=dtype), Shard(0))

    def _all(self, flag: bool) -> bool:
        is_set = torch.tensor(int(flag))
        dist.all_reduce(is_set, dist.ReduceOp.MIN, self.group)
        return bool(is_set)

    def _remove(self, path: Path) -> None:
        if self.ranks.is_first:
            super()._remove(path)


def read_sharded(path: Path) -> Saved:
    """What a sharded checkpoint says of itself, and all its tensors, for a process alone; UserError if it is damaged."""
    about, state = examined(path, ALONE, lambda name, size, dtype: torch.empty(size, dtype=dtype))
    return about, loaded(path, state, None)


def examined(path: Path, ranks: Ranks, empty: Callable[[str, list[int], torch.dtype], Tensor]) -> Saved:
    """What a checkpoint says of itself, and places for its tensors, once the rank's share of its files is found whole."""
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

    noted = read_json(path / ABOUT, "a training checkpoint's notes")
    try:
        about, files = dict(noted["about"]), dict(noted["files"])
        for name in sorted(files)[ranks.number :: ranks.size]:
            if Path(name).name != name or summed(path / name) != files[name]:
                raise ValueError(f"{name} is not as it was written")
        tensors = HuggingFaceStorageReader(str(path)).read_metadata().state_dict_metadata.items()
        return about, {name: empty(name, list(one.size), one.properties.dtype) for name, one in tensors}  # type: ignore[union-attr]
    except (OSError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise UserError(
            f"expected a training checkpoint at {path}; it is damaged ({error}); use a new --out"
        ) from error


def loaded(path: Path, state: dict[str, Tensor], group: Any) -> dict[str, Tensor]:
    """The tensors of a checkpoint, read into their places."""
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # as it is for a process alone
        load(state, storage_reader=HuggingFaceStorageReader(str(path)), process_group=group, no_dist=group is None)
    return joined_pieces(state)


def joined_pieces(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors from the pieces that their blocks were written as."""
    pieces: dict[str, dict[int, Tensor]] = {}
    for name, tensor in state.items():
        base, _, number = name.partition("/")
        pieces.setdefault(base, {})[int(number or 0)] = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return {name: torch.cat([of[n] for n in sorted(of)]) if len(of) > 1 else of[0] for name, of in pieces.items()}


def summed(path: Path) -> list[Any]:
    """Size and XXH3 of a file, which is flushed to the disk."""
    digest = xxh3_128()
    with path.open("rb") as file:
        os.fsync(file.fileno())
        while block := file.read(2**24):
            digest.update(block)
        return [file.tell(), digest.hexdigest()]
