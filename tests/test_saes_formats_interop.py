"""Proof of exchange: the code of other libraries computes from our folders what we do, and we from theirs what they do.

`make interop` installs each library into build/interop-NAME, an environment of its own on top of ours, and runs these (slow) tests.
Without that folder they are skipped. Largest error allowed: 1e-5 of the root mean square, of codes and of reconstruction.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from saes_formats_toys import RULES, SHAPES, error, made
from safetensors.torch import load_file, save_file
from unweave.saes import Dictionary, UserError

ROOT = Path(__file__).parent.parent
BUILD, SCRIPTS = ROOT / "build", ROOT / "tests" / "interop"
LIMIT = 1e-5
pytestmark = pytest.mark.slow


def combinations():
    """Every shape and rule; transcoders of one site also with another width."""
    for shape in SHAPES:
        for rule in RULES:
            yield f"{shape} {rule}", made(shape, rule)
    for shape in ("transcoder", "skip"):
        for rule in ("relu", "jumprelu"):
            yield f"{shape} {rule} narrow", made(shape, rule, width_out=7)
    yield "sae batch_topk matryoshka", made("sae", "batch_topk", matryoshka=(6,))


def written(folder: Path, form: str) -> dict[str, Dictionary]:
    """The combinations that a form can hold, saved in it."""
    kept = {}
    for name, own in combinations():
        try:
            own.save(folder / name, form)
        except UserError:
            continue
        kept[name] = own
    return kept


class Exchange:
    """Our dictionaries in the form of a library, and what its code made of them and of its own."""

    def __init__(self, library: str, form: str, base: Path):
        installed = BUILD / f"interop-{library}"
        if not (installed / ".installed").exists():
            pytest.skip(f"{installed} is not there; make interop installs it")
        self.base, self.x = base, torch.randn(64, 12, generator=torch.Generator().manual_seed(1))
        self.ours = written(base / "ours", form)
        save_file({"x": self.x}, base / "x.safetensors")
        environment = {**os.environ, "PYTHONPATH": str(installed), "PYTHONSAFEPATH": "1", "HF_HUB_OFFLINE": "1"}
        script = SCRIPTS / f"their_{library}.py"
        ran = subprocess.run([sys.executable, str(script), str(base)], env=environment, capture_output=True, text=True)
        assert ran.returncode == 0, ran.stderr[-3000:]

    def errors_of_ours(self) -> dict[str, tuple[float, float]]:
        """Of each dictionary of ours that the library read: its error of codes and of reconstruction."""
        found = {}
        for name, own in self.ours.items():
            file = self.base / "read" / f"{name}.safetensors"
            if file.exists():
                found[name] = self._errors(own, load_file(file))
        return found

    def errors_of_theirs(self, refused=()) -> dict[str, tuple[float, float]]:
        """The same of those that it wrote."""
        files = sorted((self.base / "theirs").glob("*.safetensors"))
        return {
            file.stem: self._errors(Dictionary.load(file.with_suffix("")), load_file(file))
            for file in files
            if file.stem not in refused
        }

    def _errors(self, own: Dictionary, theirs: dict[str, torch.Tensor]) -> tuple[float, float]:
        assert (theirs["codes"] != 0).any()
        return error(own.encode(self.x).dense(own.config.latents), theirs["codes"]), error(own(self.x), theirs["out"])


@pytest.fixture(scope="module")
def saelens(tmp_path_factory):
    return Exchange("saelens", "saelens", tmp_path_factory.mktemp("saelens"))


@pytest.fixture(scope="module")
def sparsify(tmp_path_factory):
    return Exchange("sparsify", "sparsify", tmp_path_factory.mktemp("sparsify"))


@pytest.fixture(scope="module")
def dictionary_learning(tmp_path_factory):
    return Exchange("dictionary_learning", "dictionary_learning", tmp_path_factory.mktemp("dictionary_learning"))


def held(errors: dict[str, tuple[float, float]]) -> None:
    """Tell and check them all."""
    for name, (codes, out) in errors.items():
        print(f"{name:<36} codes {codes:.1e}  reconstruction {out:.1e}")
    assert {name: pair for name, pair in errors.items() if max(pair) > LIMIT} == {}


def test_saelens_computes_from_our_folders_what_we_do(saelens):
    errors = saelens.errors_of_ours()
    held(errors)
    several = {"crosscoder", "acausal", "cross_layer", "cross_layer_transcoder", "shared", "shared_transcoder"}
    for name in saelens.ours:
        shape, rule = name.split()[:2]
        expressed = shape not in several and (shape in ("sae", "unnamed") or rule not in ("topk", "gated"))
        assert (name in errors) is expressed, name


def test_saelens_refuses_by_name_what_it_cannot_express(saelens):
    refused = {path.stem: path.read_text() for path in (saelens.base / "read").glob("*.refused")}
    assert len(refused) == 34
    assert all("unweave_" in text for text in refused.values())


def test_we_compute_from_folders_of_saelens_what_it_does(saelens):
    held(saelens.errors_of_theirs(refused=("abstopk", "matching_pursuit")))


@pytest.mark.parametrize("name", ["abstopk", "matching_pursuit"])
def test_we_refuse_by_name_what_we_cannot_express_of_saelens(saelens, name):
    with pytest.raises(UserError, match=name):
        Dictionary.load(saelens.base / "theirs" / name)


def test_sparsify_computes_from_our_folders_what_we_do(sparsify):
    errors = sparsify.errors_of_ours()
    held(errors)
    assert set(errors) == {"sae topk", "unnamed topk", "transcoder topk", "skip topk"}


def test_we_compute_from_folders_of_sparsify_what_it_does(sparsify):
    errors = sparsify.errors_of_theirs()
    held(errors)
    assert len(errors) == 4


def test_dictionary_learning_computes_from_our_folders_what_we_do(dictionary_learning):
    errors = dictionary_learning.errors_of_ours()
    held(errors)
    assert len(errors) == 11


def test_we_compute_from_folders_of_dictionary_learning_what_it_does(dictionary_learning):
    errors = dictionary_learning.errors_of_theirs()
    held(errors)
    assert len(errors) == 9
