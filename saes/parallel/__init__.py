"""One dictionary trained by many processes: data parallel, latents shared out, or both (docs/scale.md)."""

from .ranks import Mesh, Ranks
from .start import own_device, processes, ranks_of_this_run

__all__ = ["Mesh", "Ranks", "own_device", "processes", "ranks_of_this_run"]
