"""The public ops as torch operations: registration, derivatives, torch.compile, autocast, shapes, choice of path, errors.

That values are right is for the tests of each path.
"""

import importlib
import os
import subprocess
import sys
from functools import partial

import jaxtyping
import pytest
import torch
from kernel_tools import exactly
from torch.testing import assert_close
from torch.utils._pytree import tree_leaves
from unweave import kernels
from unweave.kernels import (
    contract,
    decode,
    dispatch,
    encode_batch_topk,
    encode_jumprelu,
    encode_relu,
    encode_topk,
    sae_gradient,
    segment,
    select_topk,
    topk,
    weight_gradient,
    which,
)
from unweave.kernels.cpu import preselect

TOKEN, D, LATENT, STACK, K = 5, 4, 9, 2, 3
PATHS = ["cpu", "reference"]


@pytest.fixture(params=PATHS)
def path(request, monkeypatch):
    monkeypatch.setenv("UNWEAVE_KERNELS", request.param)
    return request.param


@pytest.fixture
def unchecked():
    """Without the check of signatures that the tests put around every function: torch.compile cannot trace it."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def unforced(monkeypatch):
    monkeypatch.delenv("UNWEAVE_KERNELS", raising=False)


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def named(latents=LATENT, k=K):
    """Indices [token k], some of them equal within a token."""
    return torch.randint(0, latents, (TOKEN, k), generator=torch.Generator().manual_seed(7))


def encoder(stack=STACK):
    shape = (stack, LATENT) if stack else (LATENT,)
    return randn(TOKEN, D), randn(*shape, D, seed=1), randn(*shape, seed=2)


EDGES = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
THRESHOLD = torch.full((STACK, LATENT), 0.3, dtype=torch.float64)
REGISTERED = {
    "topk._topk": lambda: (randn(TOKEN, LATENT), K),
    "decode._decode": lambda: (randn(TOKEN, K), named(), randn(LATENT, D)),
    "decode._contract": lambda: (randn(TOKEN, D), named(), randn(LATENT, D)),
    "decode._weight_gradient": lambda: (randn(TOKEN, K), named(), randn(TOKEN, D), LATENT),
    "decode._sae_gradient": lambda: (randn(TOKEN, D), randn(TOKEN, 2), randn(TOKEN, K), named(), randn(LATENT, D)),
    "encode._encode_topk": lambda: (*encoder(), K),
    "encode._encode_batch_topk": lambda: (*encoder(), K, 8),
    "encode._encode_batch_topk as wide as needed": lambda: (*encoder(), K, -1),
    "encode._encode_threshold": lambda: (*encoder(), THRESHOLD, LATENT),
    "encode._encode_threshold as wide as needed": lambda: (*encoder(), THRESHOLD, -1),
    "segment._segment": lambda: (randn(TOKEN, K), named(), LATENT, EDGES, 2),
}
WITHOUT_GRADIENT = {"decode._sae_gradient", "segment._segment"}
# Functions of float tensors alone. Inputs have no ties, so a small step changes no choice.
DIFFERENTIABLE = {
    "topk": (lambda pre: topk(pre, K)[0], lambda: (randn(TOKEN, LATENT),)),
    "decode": (lambda values, W: decode(values, named(), W), lambda: (randn(TOKEN, K), randn(LATENT, D))),
    "contract": (lambda rows, W: contract(rows, named(), W), lambda: (randn(TOKEN, D), randn(LATENT, D))),
    "weight_gradient": (
        lambda values, rows: weight_gradient(values, named(), rows, LATENT),
        lambda: (randn(TOKEN, K), randn(TOKEN, D)),
    ),
    "encode_topk": (lambda *x: encode_topk(*x, K)[0], lambda: encoder(0)),
    "encode_topk, stacked": (lambda *x: encode_topk(*x, K)[0], encoder),
    "select_topk": (lambda *x: select_topk(*x, 7)[0], encoder),
    "encode_batch_topk": (lambda *x: encode_batch_topk(*x, K)[0], encoder),
    "encode_batch_topk, with capacity": (lambda *x: encode_batch_topk(*x, K, capacity=LATENT)[0], lambda: encoder(0)),
    "encode_jumprelu": (lambda *x: encode_jumprelu(*x, THRESHOLD - 1)[0], encoder),
    "encode_jumprelu, with capacity": (
        lambda *x: encode_jumprelu(*x, THRESHOLD[0], capacity=LATENT)[0],
        lambda: encoder(0),
    ),
    "encode_relu": (lambda *x: encode_relu(*x)[0], encoder),
}  # fmt: skip


def call(name):
    module, op = name.split()[0].split(".")
    return getattr(importlib.import_module(f"unweave.kernels.{module}"), op)


@pytest.mark.parametrize("name", REGISTERED)
def test_every_op_is_registered_as_torch_wants_it(name, path, unchecked):
    """Schema, autograd, fake kernel, and tracing with shapes that vary: all that opcheck looks at."""
    wants = name not in WITHOUT_GRADIENT
    arguments = [part.requires_grad_(wants and part.is_floating_point()) if torch.is_tensor(part) else part
                 for part in (part.clone() if torch.is_tensor(part) else part for part in REGISTERED[name]())]  # fmt: skip
    torch.library.opcheck(call(name), tuple(arguments))


def test_every_registered_op_is_among_them():
    ours = {schema.split("::")[1] for schema in torch._C._dispatch_get_all_op_names() if schema.startswith("unweave::")}
    assert ours == {name.split()[0].split("._")[1] for name in REGISTERED} == set(dispatch.OPS)


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_gradients_reach_every_input_and_can_be_differentiated_again(name, path):
    function, make = DIFFERENTIABLE[name]
    inputs = tuple(part.requires_grad_() for part in make())
    torch.autograd.gradcheck(function, inputs)
    torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_each_input_alone_gets_the_same_gradient(name):
    """Whatever else is asked for: a backward that skips what is not needed must not mix up the rest."""
    function, make = DIFFERENTIABLE[name]
    inputs = [part.requires_grad_() for part in make()]
    out = function(*inputs)
    cotangent = randn(*out.shape, seed=9)
    together = torch.autograd.grad(out, inputs, cotangent)
    for position, expected in enumerate(together):
        alone = [part.detach().requires_grad_(position == i) for i, part in enumerate(inputs)]
        exactly(torch.autograd.grad(function(*alone), alone[position], cotangent), [expected])


def test_a_cotangent_of_an_empty_slot_goes_nowhere():
    x, W, b = (part.requires_grad_() for part in encoder(0))
    values, _ = encode_jumprelu(x, W, b, THRESHOLD[0], capacity=LATENT)
    is_empty = values == 0
    assert is_empty.any() and not is_empty.all()
    for gradient in torch.autograd.grad(values, (x, W, b), is_empty.double()):
        assert not gradient.any()


@pytest.mark.parametrize("op", [sae_gradient, segment])
def test_what_is_not_differentiable_says_so_or_has_no_gradient(op):
    if op is segment:
        assert not segment(randn(TOKEN, K).requires_grad_(), named(), LATENT, EDGES, 2).top_values.requires_grad
        return
    out = sae_gradient(randn(TOKEN, D), randn(TOKEN, D), randn(TOKEN, K).requires_grad_(), named(), randn(LATENT, D))
    with pytest.raises(RuntimeError, match=r"backward through unweave\.sae_gradient"):
        out[0].sum().backward()


def test_gradients_keep_the_type_of_what_they_belong_to():
    """And are rounded to it once: what goes through a bfloat16 op on the way stays in float32."""
    x, W, b = (part.bfloat16().requires_grad_() for part in encoder())
    values, indices = encode_topk(x, W, b, K)
    W_dec = randn(LATENT, D).bfloat16().requires_grad_()
    decode(values[0], indices[0], W_dec).sum().backward()
    assert {part.grad.dtype for part in (x, W, b, W_dec)} == {torch.bfloat16}
    rows = randn(TOKEN, D).float().requires_grad_()
    weight_gradient(values[0].detach().bfloat16(), named(), rows, LATENT).backward(W_dec.detach().float())
    exactly([rows.grad], [decode(values[0].detach().bfloat16().float(), named(), W_dec.detach().float())])
    rows = randn(TOKEN, D).bfloat16().requires_grad_()
    contract(rows, named(), W_dec).sum().backward()
    values = randn(TOKEN, K).bfloat16().requires_grad_()
    weight_gradient(values, named(), rows, LATENT).sum().backward()
    assert rows.grad.dtype == values.grad.dtype == torch.bfloat16


ENCODERS = {
    "topk": lambda x, W, b: encode_topk(x, W, b, K),
    "batch_topk": lambda x, W, b: encode_batch_topk(x, W, b, K),
    "batch_topk with capacity": lambda x, W, b: encode_batch_topk(x, W, b, K, capacity=20),
    "jumprelu with capacity": lambda x, W, b: encode_jumprelu(x, W, b, torch.full_like(b, 0.5), capacity=40),
    "relu": lambda x, W, b: encode_relu(x, W, b),
    "dense topk": lambda x, W, b: topk(x @ W.T + b, K),
}


def loss_and_gradients(step, encode):
    shapes = ((8, 12), (40, 12), (40,), (40, 12), (12,))
    inputs = [randn(*shape, seed=seed, dtype=torch.float32).requires_grad_() for seed, shape in enumerate(shapes)]
    loss = step(*inputs, encode)
    return [loss.detach(), *torch.autograd.grad(loss, inputs)]


def step(x, W_enc, b_enc, W_dec, b_dec, encode):
    values, indices = encode(x - b_dec, W_enc, b_enc)
    return (decode(values, indices, W_dec) + b_dec - x).square().mean()


@pytest.mark.parametrize("name", ENCODERS)
def test_a_compiled_step_is_the_eager_step(name, unchecked):
    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    exactly(loss_and_gradients(compiled, ENCODERS[name]), loss_and_gradients(step, ENCODERS[name]))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # inductor imports what torch itself deprecates
def test_inductor_compiles_a_step(unchecked):
    torch._dynamo.reset()
    try:
        ours = loss_and_gradients(torch.compile(step, fullgraph=True), ENCODERS["topk"])
    except torch._inductor.exc.InductorError as error:
        pytest.skip(f"no C++ compiler: {error}")
    for got, expected in zip(ours, loss_and_gradients(step, ENCODERS["topk"]), strict=True):
        assert_close(got, expected)


@pytest.mark.parametrize("name", list(ENCODERS)[:-1])
def test_autocast_rounds_nothing_in_the_ops(name, path):
    x, W, b = (part.float() for part in encoder(0))
    plain = ENCODERS[name](x, W, b)
    with torch.autocast("cpu", torch.bfloat16):
        cast = ENCODERS[name](x, W, b)
        exactly(cast, plain)
        for op, arguments in {
            decode: (plain[0], plain[1], W),
            contract: (x, plain[1], W),
            weight_gradient: (plain[0], plain[1], x, LATENT),
        }.items():
            with torch.autocast("cpu", enabled=False):
                expected = op(*arguments)
            exactly([op(*arguments)], [expected])


def test_a_step_under_autocast_has_finite_gradients_near_the_plain_ones():
    encode = ENCODERS["topk"]

    def cast(*inputs):
        with torch.autocast("cpu", torch.bfloat16):
            return step(*inputs)

    exactly(loss_and_gradients(cast, encode), loss_and_gradients(step, encode))


def test_inference_mode_leaves_nothing_behind(path):
    """Scratch memory that was made in inference mode serves a backward pass afterwards."""
    x, W, b = (part.float() for part in encoder(0))
    with torch.inference_mode():
        inside = [ENCODERS[name](x, W, b) for name in ENCODERS]
    x.requires_grad_()
    for name, expected in zip(ENCODERS, inside, strict=True):
        values, indices = ENCODERS[name](x, W, b)
        exactly((values.detach(), indices), expected)
        decode(values, indices, W).sum().backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_fake_cuda_tensors_have_the_shapes_and_types_of_real_ones(dtype, path):
    """Everything that the fake kernels say of a CUDA tensor is what the CPU does."""

    def outputs(device):
        make = randn if device == "cpu" else partial(torch.empty, device=device)
        shapes = ((TOKEN, D), (STACK, LATENT, D), (STACK, LATENT), (TOKEN, K), (TOKEN, D), (LATENT, D), (LATENT,), (3,))
        x, W, b, values, rows, W_dec, flat, edges = (make(*shape, dtype=dtype) for shape in shapes)
        indices, one = torch.ones(TOKEN, K, dtype=torch.int64, device=device), torch.ones_like(b)
        return [
            *topk(rows, 2), *encode_topk(x, W, b, K), *encode_topk(x, W_dec, flat, K), *select_topk(x, W, b, K),
            *encode_batch_topk(x, W, b, K, capacity=6), *encode_jumprelu(x, W, b, one, capacity=7),
            *encode_relu(x, W_dec, flat, capacity=8), decode(values, indices, W_dec),
            decode(values.float(), indices, W_dec), contract(rows, indices, W_dec),
            weight_gradient(values, indices, rows, LATENT), *sae_gradient(rows, x, values, indices, W_dec),
            *segment(values, indices, LATENT, edges, 2),
        ]  # fmt: skip

    real = outputs("cpu")
    with torch._subclasses.FakeTensorMode():
        fake = outputs("cuda")
    assert {part.device.type for part in fake} == {"cuda"}
    assert [(part.shape, part.dtype, part.stride()) for part in fake] == [(p.shape, p.dtype, p.stride()) for p in real]


def test_indices_may_be_of_32_bits(path):
    values, rows, W, indices = randn(TOKEN, K), randn(TOKEN, D), randn(LATENT, D), named()
    for op in (
        lambda i: decode(values, i, W),
        lambda i: contract(rows, i, W),
        lambda i: weight_gradient(values, i, rows, LATENT),
        lambda i: sae_gradient(rows, rows, values, i, W),
        lambda i: segment(values, i, LATENT, EDGES, 2),
    ):
        exactly(tree_leaves(op(indices.int())), tree_leaves(op(indices)))


def test_rows_past_two_billion_elements_are_found(tmp_path):
    """A dictionary in a sparse file of which only the touched rows exist."""
    memory = torch.from_file(str(tmp_path / "sparse"), shared=True, size=2**31 + 64, dtype=torch.float32)
    W = memory.view(-1, 64)
    W[-1], W[0] = torch.arange(64.0), 1.0
    values, indices = torch.tensor([[2.0, 3.0]]), torch.tensor([[len(W) - 1, 0]])
    exactly([decode(values, indices, W)], [2 * torch.arange(64.0)[None] + 3])
    exactly([contract(torch.ones(1, 64), indices, W)], [torch.tensor([[2016.0, 64.0]])])


@pytest.mark.parametrize("bad", [-1, LATENT])
@pytest.mark.parametrize(
    "op",
    [
        lambda i: decode(randn(TOKEN, K), i, randn(LATENT, D)),
        lambda i: contract(randn(TOKEN, D), i, randn(LATENT, D)),
        lambda i: weight_gradient(randn(TOKEN, K), i, randn(TOKEN, D), LATENT),
        lambda i: sae_gradient(randn(TOKEN, D), randn(TOKEN, D), randn(TOKEN, K), i, randn(LATENT, D)),
        lambda i: segment(randn(TOKEN, K), i, LATENT, EDGES, 1),
        lambda i: kernels.list_by_latent(i, i, LATENT),
    ],
    ids=["decode", "contract", "weight_gradient", "sae_gradient", "segment", "list_by_latent"],
)
def test_an_index_outside_is_an_error(op, bad):
    indices = named()
    indices[2, 1] = bad
    with pytest.raises(ValueError, match=rf"expected latent indices in \[0, {LATENT}\); got"):
        op(indices)


@pytest.mark.parametrize(
    "encode", ["encode_topk", "encode_batch_topk", "encode_jumprelu", "encode_relu", "select_topk"]
)
def test_shapes_that_do_not_fit_are_an_error(encode, unchecked):
    op = getattr(kernels, encode)
    x, W, b = encoder(0)
    rule = {"encode_jumprelu": (b,), "encode_relu": ()}.get(encode, (K,))
    with pytest.raises(ValueError, match=r"expected x \[token d\].* got \[5, 3\], \[9, 4\], \[9\]"):
        op(x[:, :3], W, b, *rule)
    if encode not in ("encode_topk", "select_topk"):
        with pytest.raises(ValueError, match="capacity of at least 1 slot a token; got 0; leave it out"):
            op(x, W, b, *rule, capacity=0)
    if encode.endswith("topk"):
        with pytest.raises(ValueError, match=r"expected k in \[1, 9\].*got 10; lower k or widen"):
            op(x, W, b, 10)
    if encode == "encode_jumprelu":
        with pytest.raises(ValueError, match=r"threshold of shape \[9\]; got \[8\]"):
            op(x, W, b, b[1:])


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_kernels_work_where_there_is_no_triton(platform, tmp_path):
    """Imported and used in a fresh interpreter in which triton cannot be found, on any system."""
    code = f"""
import sys
from importlib.abc import MetaPathFinder
import torch
class NoTriton(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "triton":
            raise ModuleNotFoundError(name)
before = set(sys.modules)
assert "triton" not in before
sys.meta_path.insert(0, NoTriton())
sys.path_importer_cache.clear()
real, sys.platform = sys.platform, {platform!r}
import unweave.kernels as kernels
sys.platform = real  # the first call imports more of torch, which asks the system
x, W, b = torch.randn(3, 4), torch.randn(9, 4), torch.zeros(9)
values, indices = kernels.encode_topk(x, W.requires_grad_(), b, 2)
kernels.decode(values, indices, W).sum().backward()
assert kernels.which("topk", device="cpu").path == "cpu"
assert not [name for name in sys.modules if name.split(".")[0] == "triton"]
assert "unweave.kernels.gpu" not in sys.modules
"""
    safe = {**os.environ, "PYTHONSAFEPATH": "1", "UNWEAVE_KERNELS": ""}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=safe, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture
def triton(unforced, monkeypatch):
    """A function that sets what is known of Triton: nothing wrong with it, or what."""
    return lambda lack="": monkeypatch.setattr(dispatch, "lacks_triton", lambda: lack)


def test_which_names_the_path_of_every_op(triton):
    triton()
    assert [choice.op for choice in which(device="cpu")] == list(dispatch.OPS)
    assert {choice.path for choice in which(device="cpu")} == {"cpu"}
    assert {choice.path for choice in which(device="cuda")} == {"triton"}
    assert {choice.path for choice in which(device="mps")} == {"reference"}
    assert "on mps" in which("decode", device="mps").reason
    assert str(which("decode", device="cuda")) == "decode: triton (a CUDA tensor)"


@pytest.mark.parametrize("op", ["encode_jumprelu", "encode_relu", "select_topk"])
def test_which_knows_the_public_names(op, unforced):
    assert which(op, device="cpu").op == op


def test_float64_on_cuda_takes_the_definition(triton):
    triton()
    assert which("decode", device="cuda", dtype=torch.float64)[1:] == (
        "reference", "float64, which the Triton kernels do not compute in")  # fmt: skip


def test_too_many_of_many_on_cuda_takes_the_definition(triton):
    triton()
    assert which("encode_topk", device="cuda", latents=16384, k=32).path == "triton"
    choice = which("encode_topk", device="cuda", latents=4096, k=512)
    assert choice.path == "reference" and "512 of 4096" in choice.reason and "computed twice" in choice.reason
    assert which("decode", device="cuda", latents=4096, k=512).path == "triton"


@pytest.mark.parametrize("lack", ["triton is not installed", "triton 3.2.0 is older than 3.6"])
def test_cuda_without_a_fitting_triton_takes_the_definition_or_says_what_to_do(lack, triton, monkeypatch):
    triton(lack)
    assert which("topk", device="cuda") == ("topk", "reference", f"a CUDA tensor, but {lack}")
    monkeypatch.setenv("UNWEAVE_KERNELS", "triton")
    with pytest.raises(RuntimeError, match=rf"expected triton for UNWEAVE_KERNELS=triton; {lack}; pip install"):
        which("topk", device="cuda")


@pytest.mark.parametrize(
    ("version", "lack"),
    [("3.6.0", ""), ("3.10.1", ""), ("4.0.0+git1", ""), ("3.5.1", "triton 3.5.1 is older than 3.6"), (None, "")],
)
def test_the_version_of_triton_is_read_without_importing_it(version, lack, monkeypatch):
    def found(name):
        if version is None:
            raise importlib.metadata.PackageNotFoundError
        return version

    monkeypatch.setattr(dispatch.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(dispatch.importlib.metadata, "version", found)
    assert dispatch.lacks_triton.__wrapped__() == lack
    monkeypatch.setattr(dispatch.importlib.util, "find_spec", lambda name: None)
    assert dispatch.lacks_triton.__wrapped__() == "triton is not installed"


def test_which_tells_how_the_cpu_finds_the_top(unforced, monkeypatch):
    monkeypatch.setattr(preselect, "has_fast_bfloat16", lambda: True)
    assert which("encode_topk", device="cpu", latents=16384, k=32).reason == (
        "a CPU tensor; latents pre-selected in bfloat16 (AMX) from 256 tokens on")  # fmt: skip
    assert "too many" in which("encode_topk", device="cpu", latents=1000, k=32).reason
    assert "too many" not in which("encode_topk", device="cpu", latents=4096, k=64).reason
    assert "too many" in which("encode_batch_topk", device="cpu", latents=4096, k=64).reason
    assert which("encode_topk", device="cpu", dtype=torch.float64).reason == "a CPU tensor"
    assert which("decode", device="cpu").reason == "a CPU tensor"
    monkeypatch.setattr(preselect, "has_fast_bfloat16", lambda: False)
    assert "no tile instructions" in which("encode_topk", device="cpu").reason


@pytest.mark.parametrize(
    ("asked", "device", "message"),
    [
        (
            "cuda",
            "cpu",
            "expected UNWEAVE_KERNELS to be one of reference, cpu, triton; got 'cuda'; correct or unset it",
        ),
        ("cpu", "cuda", "expected CPU tensors for UNWEAVE_KERNELS=cpu; got cuda; unset"),
        ("triton", "cpu", "expected CUDA tensors for UNWEAVE_KERNELS=triton; got cpu; set TRITON_INTERPRET=1"),
    ],
)
def test_a_path_that_cannot_run_is_an_error(asked, device, message, triton, monkeypatch):
    triton()
    monkeypatch.setenv("UNWEAVE_KERNELS", asked)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(RuntimeError, match=message):
        which("topk", device=device)
    if device == "cpu":
        with pytest.raises(RuntimeError, match=message):
            topk(randn(2, 3), 1)


@pytest.mark.parametrize("asked", ["reference", "cpu", "triton"])
def test_a_forced_path_runs_and_is_the_reason(asked, triton, monkeypatch):
    triton()
    monkeypatch.setenv("UNWEAVE_KERNELS", asked)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert which("decode", device="cpu") == ("decode", asked, f"UNWEAVE_KERNELS={asked}")
    seen = []
    monkeypatch.setattr(dispatch, "import_module", lambda name, package: seen.append(name) or kernels.reference)
    topk(randn(2, 3), 1)
    assert seen == [{"triton": ".gpu"}.get(asked, f".{asked}")]


def test_an_unknown_op_is_an_error():
    with pytest.raises(ValueError, match=r"expected one of topk, .*encode_relu.*; got 'matmul'"):
        which("matmul")
