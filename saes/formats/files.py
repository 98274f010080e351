"""Reading files that anybody may have made: every failure is a UserError, and nothing in a file is ever run.

safetensors are read as they are. An npz is read without its pickled objects. A `.pt` is a pickle: it is read by torch's
`weights_only` unpickler, which builds tensors, numbers, text and containers of them and refuses everything else.
JSON and YAML are limited in size. `plain` then checks the tensors themselves.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError
from ..io import atomic_path, read_json, read_tensors

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
LARGEST_TEXT = 32 << 20  # bytes of JSON or YAML
PICKLES = (".pt", ".pth")
ENDINGS = (".safetensors", ".npz", *PICKLES)


def read_object(path: Path, what: str) -> dict[str, Any]:
    """A JSON object of sensible size and depth; UserError naming `what` otherwise."""
    _check_size(path, what)
    try:
        return read_json(path, what)
    except RecursionError as error:
        raise UserError(f"expected {what} at {path}; its JSON is nested too deeply; make it anew") from error


def read_yaml(path: Path, what: str) -> dict[str, Any]:
    """A YAML mapping, read by the safe loader; UserError naming `what` otherwise."""
    import yaml

    _check_size(path, what)
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), Loader=loader)
    except (OSError, ValueError, TypeError, yaml.YAMLError, RecursionError) as error:
        raise UserError(f"expected {what} at {path}; could not read it ({error}); make it anew") from error
    if not isinstance(data, dict):
        raise UserError(f"expected {what} at {path}; got YAML that is no mapping; make it anew")
    return data


def _check_size(path: Path, what: str) -> None:
    if path.is_file() and path.stat().st_size > LARGEST_TEXT:
        raise UserError(
            f"expected {what} of at most {LARGEST_TEXT >> 20} MiB at {path}; it is larger; is it that file?"
        )


def read_file(path: Path, what: str) -> dict[str, Any]:
    """What a tensor file holds by name: tensors and, in a pickle, numbers and text. UserError naming `what` otherwise."""
    if path.suffix in PICKLES:
        return _pickle(path, what)
    return _npz(path, what) if path.suffix == ".npz" else dict(read_tensors(path, what))


def names_in(path: Path) -> frozenset[str]:
    """The names in a tensor file, without reading its tensors where that can be; empty if it cannot be read."""
    try:
        if path.suffix == ".safetensors":
            from safetensors import safe_open

            with safe_open(path, framework="pt") as file:
                return frozenset(file.keys())
        if path.suffix == ".npz":
            with zipfile.ZipFile(path) as file:
                return frozenset(name.removesuffix(".npy") for name in file.namelist())
        return frozenset(_pickle(path, "tensors")) if path.suffix in PICKLES else frozenset()
    except Exception:  # whatever ails the file, the reader of its format will say it
        return frozenset()


def _npz(path: Path, what: str) -> dict[str, Any]:
    import numpy as np

    try:
        # Opened here, since numpy leaves a file open that is no archive.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(np.ascontiguousarray(arrays[name])) for name in arrays.files}
    except Exception as error:  # zlib, zipfile, struct and numpy each have their own
        raise UserError(f"expected {what} at {path}; could not read it ({error}); download it again") from error


def _pickle(path: Path, what: str) -> dict[str, Any]:
    try:
        try:
            data = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # a file of the old form, which cannot be mapped
            data = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can raise anything
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"expected {what} at {path}, as plain tensors; could not read it ({first[:200]}); a pickle that holds more than "
            "tensors can run code and is not opened: save its state_dict, or safetensors, where it was made"
        ) from error
    if not isinstance(data, dict) or not all(isinstance(name, str) for name in data):
        raise UserError(
            f"expected {what} at {path}; got a {type(data).__name__}, not tensors by name; save a state_dict"
        )
    return data


def write_pickle(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write the state dict that a library reads with torch.load, atomically. Nothing of ours is kept in this form."""
    with atomic_path(path) as temporary:
        torch.save({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary)


def plain(tensors: Mapping[str, Any], path: Path, names: Iterable[str]) -> dict[str, Tensor]:
    """The named ones, each a dense tensor of finite floating-point numbers; UserError saying which is not and why."""
    found = {}
    for name in names:
        tensor = tensors[name]
        if not isinstance(tensor, Tensor) or tensor.layout != torch.strided or tensor.device.type != "cpu":
            raise UserError(
                f"expected {name} in {path} as a dense tensor; got {type(tensor).__name__}; export it again"
            )
        if tensor.dtype not in FLOATS:
            raise UserError(f"expected floating-point numbers in {name} of {path}; got {tensor.dtype}; export it again")
        # A few bytes can claim to be a matrix of any size by strides of zero.
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise UserError(f"expected {name} in {path} to be as large as its shape; it is not; export it again")
        if not torch.isfinite(tensor).all():
            raise UserError(
                f"expected finite numbers in {name} of {path}; got NaN or infinity; the weights are damaged"
            )
        found[name] = tensor.detach()
    return found


def whole(value: Any, what: str, path: Path) -> int:
    """A whole number of at least 1, given as such or as a tensor of one; UserError naming it otherwise."""
    if isinstance(value, Tensor) and value.numel() == 1 and value.layout == torch.strided:
        value = value.item()
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if type(value) is not int or not 1 <= value < 1 << 48:
        raise UserError(f"expected {what} as a whole number above zero in {path}; got {str(value)[:60]}; mend it")
    return value


def absent(tensors: Mapping[str, Any], path: Path, wanted: Iterable[str], optional: Iterable[str] = ()) -> None:
    """UserError for tensors that are wanted and missing, or there and neither wanted nor optional."""
    wanted, optional = list(wanted), set(optional)
    missing = [name for name in wanted if name not in tensors]
    more = sorted(set(tensors) - set(wanted) - optional)
    if missing or more:
        said = [f"{', '.join(missing)} missing"] if missing else []
        said += [f"{', '.join(more)[:200]} unknown"] if more else []
        raise UserError(
            f"expected {', '.join(wanted)} in {path}; got {' and '.join(said)}; the file is damaged or of another form"
        )
