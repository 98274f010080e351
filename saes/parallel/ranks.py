"""The processes that train one dictionary, as a grid: data ranks x latent ranks.

    rank of the grid      holds                                    sees
    (data r, latent l)    the l-th share of every block's latents  the r-th share of every batch's tokens

`Ranks` is a process alone: nothing is sent, every method gives back what it was given. `Mesh` overrides two primitives, a
reduction and a gathering, with those of torch.distributed; everything else here, and in the training step, is written once.

What a step sends (bytes by purpose are counted in `sent`; `traffic` of plan.py says what they must be):

    candidates   values of each rank's best k latents of a token              over the latent ranks
    outputs      each rank's part of the reconstruction                       over the latent ranks
    gradients    of the rank's own rows, and of what all ranks hold alike     over the data ranks
    numbers      sums of squares, counts, which latents fired
"""

from __future__ import annotations

from collections import Counter
from typing import Any, Literal

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

Over = Literal["data", "latent", "all"]
LOOK_EVERY = 8  # steps between two looks at whether any rank was asked to end, for which the device must be waited for


class Ranks:
    """A process that trains alone. `data` and `latent` are the sizes of the grid, `data_rank` and `latent_rank` the place in it."""

    data = latent = 1
    data_rank = latent_rank = 0
    most_candidates = 2**62  # latents of one rank's share of a block

    @property
    def size(self) -> int:
        """Processes in all."""
        return self.data * self.latent

    @property
    def number(self) -> int:
        """This process's number, from 0."""
        return self.data_rank * self.latent + self.latent_rank

    @property
    def is_first(self) -> bool:
        """True for the one process that writes files and shows progress."""
        return self.data_rank == self.latent_rank == 0

    def reduce(self, x: Tensor, over: Over, what: str = "numbers", op: str = "sum") -> Tensor:
        """The sum (or `min`, `max`) of `x` over the ranks; `x` may be overwritten."""
        return x

    def gather(self, x: Tensor, over: Over, what: str = "numbers") -> list[Tensor]:
        """`x` of every rank, all of one shape, in the order of the ranks."""
        return [x]

    def wait(self) -> None:
        """Return when every rank has come here."""

    def told(self, flag: bool) -> bool:
        """The first rank's flag."""
        return flag

    def any(self, flag: bool) -> bool:
        """Whether any rank's flag is set."""
        return flag

    def signal(self, heard: int | None, step: int) -> int | None:
        """The signal that this process heard; of several ranks, which look every few steps, one that any of them heard."""
        return heard

    def share(self, rows: int) -> slice:
        """Which of a batch's rows this rank sees."""
        return slice(self.data_rank * rows // self.data, (self.data_rank + 1) * rows // self.data)

    def sum_data(self, x: Tensor, what: str = "numbers") -> Tensor:
        """Sum over the ranks that see other tokens."""
        return self.reduce(x, "data", what)

    def sum_latent(self, x: Tensor, what: str = "numbers") -> Tensor:
        """Sum over the ranks that hold other latents."""
        return self.reduce(x, "latent", what)

    def any_data(self, flags: Bool[Tensor, "latent"]) -> Bool[Tensor, "latent"]:
        """Where a flag is set on any rank that sees other tokens."""
        return flags if self.data == 1 else self.reduce(flags.to(torch.uint8), "data", op="max").bool()

    def joined(self, part: Float[Tensor, "*shape"], what: str = "outputs") -> Float[Tensor, "*shape"]:
        """Sum over latent ranks whose gradient is each part's own: what latents write together."""
        return part if self.latent == 1 else Joined.apply(part, self, what)

    def spread(self, whole: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """The same tensor, whose gradient is summed over latent ranks: what latents read together."""
        return whole if self.latent == 1 else Spread.apply(whole, self)

    def top(
        self, values: Float[Tensor, "token width"], indices: Int[Tensor, "token width"], k: int
    ) -> tuple[Float[Tensor, "token kept"], Int[Tensor, "token kept"]]:
        """Of each rank's candidates, largest first, those that are among the k largest of all ranks; the others' values are 0.

        Ties go to the lower rank, whose latents are the lower ones, then to the earlier candidate: as one process takes them.
        What is kept of a row is its beginning, so on the CPU the slots that no row uses are cut off.
        """
        if self.latent == 1:
            return values, indices
        width = min(k, self.most_candidates)
        padded = torch.nn.functional.pad(values.detach(), (0, width - values.shape[1]), value=-torch.inf)
        every = torch.cat(self.gather(padded, "latent", "candidates"), 1)
        first = every.argsort(dim=1, descending=True, stable=True)[:, :k] // width
        kept = (first == self.latent_rank).sum(1)
        used = int(kept.max()) if kept.device.type == "cpu" and len(kept) else values.shape[1]
        values, indices = values[:, :used], indices[:, :used]
        is_own = torch.arange(values.shape[1], device=kept.device) < kept[:, None]
        return torch.where(is_own & (values > -torch.inf), values, 0), indices


ALONE = Ranks()


class Mesh(Ranks):
    """This process among those of a DeviceMesh with the dimensions `data` and `latent`."""

    def __init__(self, mesh: DeviceMesh, block_latents: int):
        self.mesh = mesh
        self.data, self.latent = mesh["data"].size(), mesh["latent"].size()
        self.data_rank, self.latent_rank = mesh["data"].get_local_rank(), mesh["latent"].get_local_rank()
        self.groups: dict[str, Any] = {
            "data": mesh["data"].get_group(),
            "latent": mesh["latent"].get_group(),
            "all": None,
        }
        self.sizes = {"data": self.data, "latent": self.latent, "all": self.size}
        self.most_candidates = block_latents // self.latent
        self.sent: Counter[str] = Counter()

    def reduce(self, x: Tensor, over: Over, what: str = "numbers", op: str = "sum") -> Tensor:
        """The sum (or `min`, `max`) of `x` over the ranks; `x` may be overwritten."""
        ranks = self.sizes[over]
        if ranks == 1:
            return x
        x = x.contiguous()
        self.sent[what] += 2 * (ranks - 1) * x.nbytes // ranks
        dist.all_reduce(x, getattr(dist.ReduceOp, op.upper()), self.groups[over])
        return x

    def gather(self, x: Tensor, over: Over, what: str = "numbers") -> list[Tensor]:
        """`x` of every rank, all of one shape, in the order of the ranks."""
        ranks = self.sizes[over]
        if ranks == 1:
            return [x]
        x = x.contiguous()
        self.sent[what] += (ranks - 1) * x.nbytes
        parts = [torch.empty_like(x) for _ in range(ranks)]
        dist.all_gather(parts, x, self.groups[over])
        return parts

    def wait(self) -> None:
        """Return when every rank has come here."""
        dist.barrier()

    def told(self, flag: bool) -> bool:
        """The first rank's flag."""
        return self.any(flag and self.is_first)

    def any(self, flag: bool) -> bool:
        """Whether any rank's flag is set."""
        return bool(self._most(int(flag)))

    def signal(self, heard: int | None, step: int) -> int | None:
        """The signal that this process heard; of several ranks, which look every few steps, one that any of them heard."""
        return None if step % LOOK_EVERY else self._most(heard or 0) or None

    def _most(self, number: int) -> int:
        return int(self.reduce(torch.tensor(number, device=self.mesh.device_type), "all", op="max"))


class Joined(torch.autograd.Function):
    """Forward a sum over latent ranks, backward the identity."""

    @staticmethod
    def forward(ctx: Any, part: Tensor, ranks: Ranks, what: str) -> Tensor:
        return ranks.sum_latent(part.clone(), what)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        return gradient, None, None


class Spread(torch.autograd.Function):
    """Forward the identity, backward a sum over latent ranks."""

    @staticmethod
    def forward(ctx: Any, whole: Tensor, ranks: Ranks) -> Tensor:
        ctx.ranks = ranks
        return whole.view_as(whole)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return ctx.ranks.sum_latent(gradient.clone(), "gradients"), None
