"""Files that anybody may have made: a UserError that says why, or a dictionary that computes; nothing else, and nothing is run."""

import json
import os
import pickle
import random
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from saes_formats_files import gemma_scope, put, state_dict, tensors_of
from saes_formats_samples import SAMPLES
from saes_formats_toys import RULES, SHAPES, inputs, made
from unweave.saes import Dictionary, UserError

OURS = {f"ours {shape} topk": (shape, "topk") for shape in SHAPES}
OURS |= {f"ours {shape} {rule}": (shape, rule) for shape in ("sae", "transcoder", "shared") for rule in RULES}
ROUNDS = int(os.environ.get("ROUNDS", "24"))
DEEP = 5000


def example(name: str, folder: Path) -> Path:
    """A sound dictionary of one form."""
    folder.mkdir()
    if name in OURS:
        made(*OURS[name], model={"name": "m", "fingerprint": "f"}, keep={"drop_positions": 1}).save(folder)
        return folder
    return SAMPLES[name](folder).path


def computes(own: Dictionary) -> bool:
    """Whether it gives codes and a reconstruction."""
    for site in own.config.site if own.layout.is_shared else ("",):
        one = own.at(site) if site else own
        x = {key: value.to(own.W_enc.dtype) for key, value in inputs(one, rows=3).items()}
        codes = one.encode(x)
        assert one.decode_flat(codes, x).shape == (3, one.d_out)
        assert codes.indices.max() < one.config.latents
    return True


# What can be done to text, to a tensor, to a file.

VALUES = [None, True, -1, 0, 1, 10**30, 2**63, float("inf"), float("nan"), 1e308, "", "text", "../../etc/passwd", "\0", [], {}, [[]],
          ["a", 1], {"a": None}, "a" * 10_000, -0.0, 3.5, [0] * 100]  # fmt: skip


def places(data, path=()):
    """Every place in a JSON value."""
    yield path
    for key, value in data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ():
        yield from places(value, (*path, key))


def hurt_json(path: Path, draw: random.Random) -> None:
    data = json.loads(path.read_text())
    *way, last = draw.choice(list(places(data))[1:])
    inner = data
    for key in way:
        inner = inner[key]
    if draw.random() < 0.2 and isinstance(inner, dict):
        del inner[last]
    else:
        inner[last] = draw.choice(VALUES)
    path.write_text(json.dumps(data))


TENSORS = {
    "flat": lambda tensor: tensor.flatten(),
    "turned": lambda tensor: tensor.mT if tensor.ndim > 1 else tensor[None],
    "short": lambda tensor: tensor[1:] if tensor.ndim else tensor,
    "empty": lambda tensor: tensor.flatten()[:0],
    "scalar": lambda tensor: tensor.flatten()[0],
    "stacked": lambda tensor: torch.stack([tensor, tensor]),
    "nan": lambda tensor: torch.full_like(tensor, float("nan")) if tensor.is_floating_point() else tensor - 2**31,
    "infinite": lambda tensor: tensor * float("inf"),
    "integers": lambda tensor: tensor.to(torch.int32),
    "complex": lambda tensor: tensor.to(torch.complex64),
    "half": lambda tensor: tensor.half(),
    "huge": lambda tensor: tensor * 1e300,
    "negative": lambda tensor: -tensor,
}


def hurt_tensors(path: Path, draw: random.Random) -> None:
    tensors = tensors_of(path)
    name = draw.choice([name for name, value in tensors.items() if isinstance(value, torch.Tensor)])
    how = draw.choice(["drop", "rename", "swap", "more", *TENSORS])
    if how == "more":
        tensors["more"] = torch.zeros(3)
    elif how == "swap":
        other = draw.choice(list(tensors))
        tensors[name], tensors[other] = tensors[other], tensors[name]
    else:
        tensor = tensors.pop(name)
        if how != "drop":
            tensors["other" if how == "rename" else name] = tensor if how == "rename" else TENSORS[how](tensor)
    put(path, tensors)


def hurt_bytes(path: Path, draw: random.Random) -> None:
    data = bytearray(path.read_bytes())
    how = draw.choice(["cut", "flip", "empty", "noise", "twice", "gone", "head"])
    if how == "cut":
        data = data[: draw.randrange(len(data))]
    elif how in ("flip", "head"):
        for _ in range(draw.randint(1, 8)):
            data[draw.randrange(min(len(data), 200 if how == "head" else len(data)))] = draw.randrange(256)
    elif how == "gone":
        return path.unlink()
    path.write_bytes({"empty": b"", "noise": draw.randbytes(500), "twice": bytes(data) * 2}.get(how, bytes(data)))
    return None


@pytest.mark.parametrize("name", [*SAMPLES, *OURS])
def test_a_changed_file_is_a_user_error_or_a_dictionary_that_computes(tmp_path, name):
    path = example(name, tmp_path / "sound")
    draw, refused = random.Random(name + os.environ.get("SEED", "")), 0
    for number in range(ROUNDS):
        base = tmp_path / f"{number}"
        shutil.copytree(tmp_path / "sound", base)
        here = base / path.relative_to(tmp_path / "sound")
        files = sorted(file for file in base.rglob("*") if file.is_file())
        file = draw.choice(files)
        ways = [hurt_bytes, *([hurt_json] * 3 if file.suffix == ".json" else [])]
        ways += [hurt_tensors] * 3 if file.suffix in (".safetensors", ".npz", ".pt", ".pth") else []
        draw.choice(ways)(file, draw)
        try:
            assert computes(Dictionary.load(here))
        except UserError as error:
            refused += 1
            assert len(str(error)) < 5000
    assert refused > ROUNDS // 4


MAY_GO = {"k", "threshold", "code_normalization_id", "mean", "W_skip", "activation_function.threshold", "activation",
          "activation_state_dict",
          "stats_last_nonzero", "group_sizes", "threshold_0", "threshold_1", "threshold_2"}  # fmt: skip
"""Without these a file says something else, or the same: a TopK's threshold, a transcoder's skip path."""


@pytest.mark.parametrize("how", ["drop", "more", "nan", "integers", "stacked", "empty"])
@pytest.mark.parametrize("name", [name for name in [*SAMPLES, *OURS] if "False" not in name])
def test_a_tensor_that_is_missing_added_or_of_another_kind_is_a_user_error(tmp_path, name, how):
    path = example(name, tmp_path / "sound")
    for file in [
        file for file in (tmp_path / "sound").rglob("*") if file.suffix in (".safetensors", ".npz", ".pt", ".pth")
    ]:
        sound = tensors_of(file)
        for key in [key for key, value in sound.items() if isinstance(value, torch.Tensor)]:
            if key in MAY_GO or key.startswith("dataset_average"):
                continue
            tensors = dict(sound)
            tensor = tensors.pop(key)
            if how == "more":
                tensors |= {key: tensor, "more": torch.zeros(3)}
            elif how != "drop":
                tensors[key] = TENSORS[how](tensor)
            put(file, tensors)
            with pytest.raises(UserError, match="finite numbers" if how == "nan" else "expected"):
                Dictionary.load(path)
        put(file, sound)
    assert computes(Dictionary.load(path))


class Trap:
    """Runs when it is unpickled."""

    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self):
        return os.mkdir, (str(self.file),)


@pytest.mark.parametrize("kind", ["goodfire", "deepseek_r1", "qwen_scope", "openai", "dictionary_learning AutoEncoder"])
@pytest.mark.parametrize("form", ["torch", "pickle", "inside"])
def test_a_pickle_that_would_run_code_is_refused_and_runs_nothing(tmp_path, kind, form):
    path = example(kind, tmp_path / "sound")
    file = path / "ae.pt" if path.is_dir() else path
    trap = Trap(tmp_path / "sprung")
    if form == "pickle":
        file.write_bytes(pickle.dumps(trap))
    else:
        torch.save({**torch.load(file, weights_only=True), "k": trap} if form == "inside" else trap, file)
    with pytest.raises(UserError):
        Dictionary.load(path)
    with pytest.raises(UserError, match="run code"):
        Dictionary.load(path, format=kind.split()[0])
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("value", ["expanded", "sparse", "module", "list", "number"])
def test_pickled_things_that_are_no_plain_tensors_are_refused(tmp_path, value):
    path = state_dict(tmp_path, "goodfire").path
    state = torch.load(path, weights_only=True)
    weight = state["encoder_linear.weight"]
    state["encoder_linear.weight"] = {
        "expanded": torch.zeros(1).expand(10**6, 10**6),
        "sparse": weight.to_sparse(),
        "module": {"weight": weight},
        "list": weight.tolist(),
        "number": 3,
    }[value]
    torch.save(state, path)
    with pytest.raises(UserError):
        Dictionary.load(path)


def test_a_pickled_object_inside_an_npz_is_refused(tmp_path):
    path = gemma_scope(tmp_path).path
    arrays = dict(np.load(path / "params.npz"))
    np.savez(path / "params.npz", **{**arrays, "b_enc": np.array([Trap(tmp_path / "sprung")] * 10, dtype=object)})
    with pytest.raises(UserError, match="could not read"):
        Dictionary.load(path)
    assert not (tmp_path / "sprung").exists()


def test_an_npz_that_claims_more_than_it_holds_is_refused(tmp_path):
    path = gemma_scope(tmp_path).path / "params.npz"
    head = b"\x93NUMPY\x01\x00"
    text = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000, 1000000), }"
    text += b" " * (118 - len(text) % 118) + b"\n"
    with zipfile.ZipFile(path, "w") as file:
        for name in ("W_enc", "W_dec", "b_enc", "b_dec", "threshold"):
            file.writestr(f"{name}.npy", head + len(text).to_bytes(2, "little") + text)
    with pytest.raises(UserError):
        Dictionary.load(path)


@pytest.mark.parametrize("name", ["ours sae topk", "sparsify", "llama_scope", "llamascopium clt relu True", "gemma_scope_2 affine",
                                  "dictionary_learning AutoEncoder"])  # fmt: skip
@pytest.mark.parametrize("text", ["deep", "deep object", "long number", "large"])
def test_json_that_is_deep_long_or_large_is_refused(tmp_path, name, text, monkeypatch):
    from unweave.saes.formats import files

    monkeypatch.setattr(files, "LARGEST_TEXT", 1 << 20)
    path = example(name, tmp_path / "sound")
    file = next(file for file in path.rglob("*.json"))
    file.write_text(
        {
            "deep": '{"metadata": ' + "[" * DEEP + "]" * DEEP + "}",
            "deep object": '{"a": ' * DEEP + "1" + "}" * DEEP,
            "long number": '{"d_in": ' + "9" * 10_000 + "}",
            "large": '{"d_in": "' + "a" * (1 << 20) + '"}',
        }[text]
    )
    with pytest.raises(UserError):
        Dictionary.load(path)


@pytest.mark.parametrize(
    "text", ["!!python/object/apply:os.mkdir [sprung]", "a: &a [*a]", "{" * DEEP, "[1, 2]", "\0", ""]
)
def test_yaml_that_is_no_plain_mapping_is_refused_and_runs_nothing(tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    path = SAMPLES["circuit_tracer clt"](tmp_path).path
    (path / "config.yaml").write_text(text)
    with pytest.raises(UserError):
        Dictionary.load(path)
    assert not Path("sprung").exists()


def test_a_path_in_a_file_leads_nowhere(tmp_path):
    path = SAMPLES["circuit_tracer plt relu"](tmp_path).path
    for entry in ("../../etc/passwd", "/etc/passwd", "hf://a/b/c"):
        (tmp_path / "config.yaml").write_text(
            f"model_kind: transcoder_set\nfeature_input_hook: a\nfeature_output_hook: b\ntranscoders: ['{entry}']\n"
        )
        with pytest.raises(UserError, match="lists others"):
            Dictionary.load(tmp_path)
    assert computes(Dictionary.load(path))  # the file itself is what it is
