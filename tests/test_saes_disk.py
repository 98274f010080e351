"""What is said when the disk is full: which file could not be written, and nothing is left of it."""

import errno
import io
import os
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from unweave.saes.cli import run_command
from unweave.saes.errors import UserError
from unweave.saes.io import read_json, write_tensors
from unweave.saes.latents.codes.tensor_file import tensor_file


class FullDisk(io.FileIO):
    """A file that takes the first `room` bytes."""

    room = 100

    def write(self, data) -> int:
        if self.tell() + len(memoryview(data).cast("B")) > self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(data)


@pytest.fixture
def full_disk(monkeypatch):
    opened = Path.open

    def open_full(path, mode="r", *rest, **more):
        return io.BufferedWriter(FullDisk(path, "wb")) if mode == "wb" else opened(path, mode, *rest, **more)

    monkeypatch.setattr(Path, "open", open_full)


@pytest.mark.parametrize("numbers", [5, 100_000])  # written when the file is closed, and at once
def test_a_tensor_file_on_a_full_disk_is_named_and_not_left(tmp_path, full_disk, numbers):
    sizes = {"a": (torch.float64, numbers)}
    says = r"could not write .*/x\.safetensors: .*No space left"
    with pytest.raises(OSError, match=says), tensor_file(tmp_path / "x.safetensors", sizes) as write:
        write("a", torch.zeros(numbers, dtype=torch.float64))
    assert not list(tmp_path.iterdir())


def test_a_tensor_file_where_none_may_be_is_named_once(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError) as caught, tensor_file(tmp_path / "file" / "x", {}):
        pass
    assert str(caught.value).count(str(tmp_path)) == 1


def test_a_command_on_a_full_disk_ends_with_one_whole_line(tmp_path, monkeypatch, capsys):
    def refuse(*given, **more):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("safetensors.torch.save_file", refuse)
    assert run_command(lambda: write_tensors(tmp_path / "x.safetensors", {"a": torch.zeros(2)}), as_json=False) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: could not write ") and "x.safetensors" in said
    assert said.endswith("(os error 28); check the path, its permissions and the disk\n")


def test_a_command_on_a_path_that_is_refused_names_it(tmp_path, capsys):
    assert run_command(lambda: {"text": (tmp_path / "absent").read_text()}, as_json=False) == 2
    assert f"No such file or directory: {tmp_path / 'absent'}; check" in capsys.readouterr().err


def test_a_folder_that_is_not_there_and_one_of_another_kind_are_told_apart(tmp_path):
    with pytest.raises(UserError, match=r"the manifest at .*; the folder .*nowhere does not exist; check the path$"):
        read_json(tmp_path / "nowhere" / "manifest.json", "the manifest")
    with pytest.raises(UserError, match=r"the folder has no such file; check the path$"):
        read_json(tmp_path / "manifest.json", "the manifest")
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(UserError, match="could not read it"):
        read_json(tmp_path / "manifest.json", "the manifest")
