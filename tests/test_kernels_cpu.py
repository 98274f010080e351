"""The CPU path against the definition: on small integers, whose sums are exact, bit for bit, in one block or in many."""

import pytest
import torch
from kernel_tools import exactly, integers, poison_memory, randn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from unweave import kernels
from unweave.kernels import cpu, encode_topk, reference
from unweave.kernels.cpu import encode as blocks_of
from unweave.kernels.cpu import linear, preselect, select, workspace
from unweave.kernels.testing import assert_as_accurate_as

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="kernel_tools makes its data on the GPU there")
BLOCKS = {"one block": (1024, 16_384, 4096), "many blocks": (3, 50, 16)}
SHAPES = [(1, 1, 1, 1), (5, 7, 130, 4), (7, 33, 300, 17), (4, 6, 100, 100), (8, 16, 257, 1), (6, 3, 51, 50)]


@pytest.fixture(autouse=True, params=BLOCKS)
def blocks(request, monkeypatch):
    """Every test in one block and in several, ragged ones; memory that was never written shows."""
    for name, size in zip(("TOKENS", "LATENTS", "SLICE"), BLOCKS[request.param], strict=True):
        monkeypatch.setattr(blocks_of, name, size)
    monkeypatch.setattr(workspace, "_kept", type(workspace._kept)())
    check = poison_memory(monkeypatch)
    yield request.param
    check()


def case(token, d, latent, stack=1, dtype=torch.float32, make=integers):
    shapes = (token, d), (stack, latent, d), (stack, latent)
    return tuple(make(*shape, seed=seed).to(dtype) for seed, shape in enumerate(shapes))


def of_pre(pre):
    """Inputs whose pre-activations are exactly these [token latent], which must be finite."""
    return torch.eye(len(pre), dtype=pre.dtype), pre.T[None].contiguous(), torch.zeros(1, pre.shape[1], dtype=pre.dtype)


def agree(op, *arguments):
    """The same tensors, in value and type, as the definition's."""
    ours, theirs = getattr(cpu, op)(*arguments), getattr(reference, op)(*arguments)
    assert [part.dtype for part in ours] == [part.dtype for part in theirs]
    exactly(ours, theirs)
    return ours


DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


@pytest.mark.parametrize(("token", "d", "latent", "k"), SHAPES)
@pytest.mark.parametrize("stack", [1, 3])
def test_encoders_are_the_definition(token, d, latent, k, stack):
    inputs = case(token, d, latent, stack)
    threshold = integers(stack, latent, seed=5) + 2
    agree("encode_topk", *inputs, k)
    for capacity in (-1, min(3, latent), latent):
        agree("encode_batch_topk", *inputs, k, capacity)
        agree("encode_threshold", *inputs, threshold, capacity)
        agree("encode_threshold", *inputs, torch.zeros_like(threshold), capacity)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_float_type_is_computed_at_least_in_float32(dtype):
    x, W, b = case(5, 7, 130, 2, dtype)
    agree("topk", W[0].T, 9)
    agree("encode_topk", x, W, b, 9)
    agree("encode_batch_topk", x, W, b, 3, -1)
    agree("encode_threshold", x, W, b, b, 40)


@pytest.mark.parametrize("k", [1, 5, 31])
@pytest.mark.parametrize(("token", "latent"), [(1, 31), (6, 257), (3, 5000)])
@pytest.mark.parametrize("make", [integers, randn])
def test_topk_is_a_stable_sort(make, token, latent, k):
    agree("topk", make(token, latent), k)
    agree("topk", make(latent, token).T, k)
    agree("topk", make(1, latent).expand(token, -1), k)


@pytest.mark.parametrize("k", [1, 3, 40])
def test_what_is_not_a_number_is_ordered_too(k):
    pre = integers(6, 150)
    pre[0, ::7], pre[1, ::5], pre[2] = torch.inf, -torch.inf, torch.where(torch.arange(150) % 2 == 0, -0.0, 0.0)
    pre[3, ::9], pre[4], pre[5] = torch.nan, torch.nan, -torch.inf
    agree("topk", pre, k)
    x, W, b = case(5, 4, 150)
    for value in (torch.nan, torch.inf, -torch.inf):
        x[1, 2] = b[0, ::11] = value
        W[0, 70, 1] = value
        agree("encode_topk", x, W, b, k)
        agree("encode_batch_topk", x, W, b, k, -1)
        agree("encode_threshold", x, W, b, b.nan_to_num(), -1)


@pytest.mark.parametrize("bias", [torch.nan, torch.inf, -torch.inf])
def test_batch_topk_of_a_batch_in_which_all_are_equal(bias):
    x, W, _ = case(7, 3, 120)
    agree("encode_batch_topk", x, W, torch.full((1, 120), bias), 4, -1)
    agree("encode_batch_topk", x * 0, W, torch.zeros(1, 120), 4, -1)


def test_threshold_lets_nan_through_and_cuts_what_is_equal():
    x, W, b = case(5, 4, 120)
    x[1, 0], threshold = torch.nan, torch.full((1, 120), 3.0)
    threshold[0, 5], threshold[0, 60], threshold[0, 7] = torch.nan, torch.inf, -torch.inf
    values, _, count = agree("encode_threshold", x, W, b, threshold, 120)
    assert count[0, 1] == 120 and values[0, 1].isnan().all()
    assert (count[0, [0, 2, 3, 4]] < 120).all()


def test_a_token_that_overflows_is_nan_throughout_and_is_counted():
    pre = torch.zeros(3, 90)
    pre[0, [4, 60]], pre[1, [3, 50, 51, 89]], pre[2, 7] = 1.0, 2.0, 3.0
    for op, rule in (("encode_threshold", torch.zeros(1, 90)), ("encode_batch_topk", 2)):
        values, indices, count = agree(op, *of_pre(pre), rule, 2)
        assert values[0, 1].isnan().all() and values[0, [0, 2]].isfinite().all()
        assert count[0].tolist()[1] == 4
    values, indices, count = agree("encode_threshold", *of_pre(pre), torch.zeros(1, 90), -1)
    assert values.shape == (1, 3, 4) and count.tolist() == [[2, 4, 1]]
    assert indices[0].tolist() == [[4, 60, 0, 0], [3, 50, 51, 89], [7, 0, 0, 0]]


@pytest.mark.parametrize("k", [1, 2, 5])
def test_batch_topk_finds_what_stands_behind_a_tokens_candidates(k):
    """One token has nearly all of the batch's largest, many more than 4 k; another has as many that lose."""
    pre = integers(9, 140, low=-3, high=3)
    pre[4] = 10 + torch.arange(140) % 3
    pre[6, ::2] = 9.0
    _, _, count = agree("encode_batch_topk", *of_pre(pre), k, -1)
    assert count.sum() == 9 * k and count[0, 4] == min(9 * k, 140) > 4 * k


def test_batch_topk_breaks_ties_at_the_threshold_by_token_then_latent():
    _, indices, count = agree("encode_batch_topk", *of_pre(torch.ones(7, 90)), 30, -1)
    assert count[0].tolist() == [90, 90, 30, 0, 0, 0, 0]
    assert indices[0, 2, :30].tolist() == list(range(30))


@pytest.mark.parametrize("scale", [1.0, 1e6])
def test_batch_topk_keeps_token_times_k_though_sums_depend_on_their_order(scale):
    """Candidates come from one matmul and the tokens that are redone from another; a large bias rounds them differently."""
    x, W, b = case(40, 37, 300, make=randn)
    x[:3] *= 20
    _, indices, count = cpu.encode_batch_topk(x, W, b * scale, 4, 300)
    assert count.sum() == 160
    truth = x.double() @ W[0].double().T + (b * scale).double()
    kept = torch.arange(300) < count[0, :, None]
    slack = 1e-5 * scale
    assert (truth.gather(1, indices[0])[kept].min() + slack >= truth.flatten().topk(160).values[-1]).all()


def test_a_bound_is_lowered_by_what_rounding_can_change():
    x, W = torch.ones(1, 2), torch.ones(3, 2)
    eps = torch.finfo(torch.float32).eps
    for bound in (1.0, 1e6, -1e6):
        assert blocks_of._lowered(torch.tensor(bound), x, W) <= bound - abs(bound) * eps
    x[0, 0] = torch.nan
    assert blocks_of._lowered(torch.tensor(0.0), torch.cat([x, torch.ones(1, 2)]), W) < 0
    for bound in (torch.inf, -torch.inf):
        assert blocks_of._lowered(torch.tensor(bound), x, W) == bound
    assert blocks_of._lowered(torch.tensor(torch.nan), x, W).isnan()


def test_groups_of_latents_are_a_view():
    """A top k within each quarter of one dictionary, without copying it."""
    x, W, b = case(5, 7, 200)
    values, indices = encode_topk(x, W[0].view(4, 50, 7), b[0].view(4, 50), 6)
    for group in range(4):
        part = slice(50 * group, 50 * group + 50)
        alone = reference.encode_topk(x, W[:, part], b[:, part], 6)
        exactly((values[group], indices[group]), (alone[0][0].relu(), alone[1][0]))


def test_views_are_read_where_they_are():
    x, W, b = integers(10, 14)[::2, ::2], integers(2, 7, 270, seed=1)[1:, :, ::2].mT, integers(1, 270, seed=2)[:, ::2]
    threshold = integers(1, 135, seed=3).expand(1, -1)
    for stacked in ((W, b, threshold), tuple(part.expand(2, *part.shape[1:]) for part in (W, b, threshold))):
        agree("encode_topk", x, *stacked[:2], 6)
        agree("encode_batch_topk", x, *stacked[:2], 6, -1)
        agree("encode_threshold", x, *stacked, -1)


def test_no_tokens_give_no_codes():
    x, W, b = case(0, 4, 60, 2)
    for capacity in (-1, 3):
        agree("encode_batch_topk", x, W, b, 2, capacity)
        agree("encode_threshold", x, W, b, b, capacity)
    agree("encode_topk", x, W, b, 3)
    agree("topk", torch.zeros(0, 60), 3)


@pytest.mark.parametrize("width", [1, 7, 16, 17, 130, 1025])
@pytest.mark.parametrize("k", [1, 2, 7])
def test_some_top_has_the_values_of_the_top(width, k):
    pre = torch.cat([integers(4, width), randn(4, width)])
    k = min(k, width)
    values, columns = select.some_top(pre, k)
    exactly((values.sort(descending=True).values, values), (reference.topk(pre, k)[0], pre.gather(1, columns)))
    assert all(len(set(row)) == k for row in columns.tolist())


@pytest.mark.parametrize("k", [1, 3, 8])
def test_candidates_may_come_in_any_order(k):
    values, latents = integers(20, 8), torch.rand(20, 8, generator=torch.Generator().manual_seed(0)).argsort(1) * 3
    placed = values.new_full((20, 24), -torch.inf).scatter(1, latents, values)
    exactly(select.top_of_candidates(values, latents, k), reference.topk(placed, k))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("token", "k", "latent", "d"), [(1, 1, 1, 1), (9, 4, 7, 5), (6, 3, 200, 33), (0, 3, 5, 4), (4, 0, 5, 4)]
)
def test_linear_ops_are_the_definition(token, k, latent, d, dtype):
    values = integers(token, k).to(dtype)
    indices = torch.randint(0, latent, (token, k), generator=torch.Generator().manual_seed(3))
    W, rows, x = (
        integers(*shape, seed=seed).to(dtype) for seed, shape in enumerate([(latent, d), (token, d), (token, 3)])
    )
    calls = {
        "decode": (values, indices, W),
        "contract": (rows, indices, W),
        "weight_gradient": (values, indices, rows, latent),
    }
    for op, arguments in calls.items():
        ours, theirs = getattr(linear, op)(*arguments), getattr(reference, op)(*arguments)
        assert ours.dtype == theirs.dtype
        exactly([ours], [theirs])
        exactly([getattr(linear, op)(*(a.int() if a is indices else a for a in arguments))], [theirs])
    agree("sae_gradient", rows, x, values, indices, W)


def test_linear_ops_read_views():
    values, indices = integers(10, 8)[::2, ::3], torch.arange(80).view(10, 8)[::2, ::3] % 9
    W, rows = integers(5, 9).T, integers(5, 5, seed=1).T
    exactly([cpu.decode(values, indices, W)], [reference.decode(values, indices, W)])
    exactly([cpu.contract(rows, indices, W)], [reference.contract(rows, indices, W)])
    exactly([cpu.weight_gradient(values, indices, rows, 9)], [reference.weight_gradient(values, indices, rows, 9)])
    agree("sae_gradient", rows, rows, values, indices, W)


def test_random_data_are_as_accurate_as_plain_torch():
    x, W, b = case(30, 64, 400, make=randn)
    values, indices = cpu.encode_topk(x, W, b, 20)
    truth = reference.preactivations(x.double(), W.double(), b.double())[0].gather(1, indices[0])
    assert_as_accurate_as(values[0], reference.preactivations(x, W, b)[0].gather(1, indices[0]), truth, "encode_topk")
    rows = (values[0], indices[0], W[0])
    wide = (values[0].double(), indices[0], W[0].double())
    assert_as_accurate_as(cpu.decode(*rows), reference.decode(*rows), reference.decode(*wide), "decode")
    names = ("d_pre", "d_W_dec", "d_W_enc", "d_b_enc")
    ours, plain = (path.sae_gradient(x, x, *rows) for path in (cpu, reference))
    for name, *three in zip(names, ours, plain, reference.sae_gradient(x.double(), x.double(), *wide), strict=True):
        assert_as_accurate_as(*three, name)


class Sizes(TorchDispatchMode):
    """The most elements of one tensor that any operation made."""

    def __init__(self):
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        storages = [
            part.untyped_storage().nbytes() // part.itemsize for part in tree_leaves(out) if torch.is_tensor(part)
        ]
        self.largest = max([self.largest, *storages])
        return out


def largest(call):
    with Sizes() as sizes:
        call()
    return sizes.largest


TOKEN, LATENT = 192, 640  # 122,880 pre-activations in all; a block below has 2,048, its ties sorted a few times that


@pytest.mark.parametrize("is_preselected", [False, True])
@pytest.mark.parametrize("make", [randn, integers, lambda *shape, seed: integers(*shape, seed=seed) * torch.nan])
def test_nothing_as_large_as_token_times_latent_is_ever_made(make, is_preselected, monkeypatch):
    monkeypatch.setattr(blocks_of, "TOKENS", 16)
    monkeypatch.setattr(blocks_of, "LATENTS", 128)
    monkeypatch.setattr(preselect, "BLOCK", (16, 128))
    monkeypatch.setattr(preselect, "pays", lambda *_: is_preselected)
    x, W, b = case(TOKEN, 6, LATENT, make=make)
    high = torch.full((1, LATENT), 30.0)
    g, few = randn(TOKEN, 6), torch.randint(0, LATENT, (TOKEN, 4), generator=torch.Generator().manual_seed(0))
    if not x.isnan().any():  # what is kept is token times latent then
        assert largest(lambda: cpu.encode_threshold(x, W, b, high, -1)) <= TOKEN * LATENT // 8
    assert largest(lambda: cpu.encode_topk(x, W, b, 4)) <= TOKEN * LATENT // 8
    assert largest(lambda: cpu.encode_batch_topk(x, W, b, 4, 8)) <= TOKEN * LATENT // 8
    assert largest(lambda: cpu.sae_gradient(g, g, randn(TOKEN, 4), few, W[0])) <= TOKEN * LATENT // 8
    assert largest(lambda: reference.encode_topk(x, W, b, 4)) >= TOKEN * LATENT


def test_the_buffer_is_kept_and_has_a_limit(monkeypatch):
    first = workspace.borrow(10, 10, dtype=torch.float32)
    again = workspace.borrow(7, 10, dtype=torch.bfloat16)
    assert first.data_ptr() == again.data_ptr() and again.shape == (7, 10)
    monkeypatch.setattr(workspace, "LIMIT", 64)
    assert workspace.borrow(5, 5, dtype=torch.float32).data_ptr() != first.data_ptr()


def test_cpu_tensors_stay_on_the_cpu_whatever_the_default_device():
    x, W, b = (integers(*shape, seed=seed) for seed, shape in enumerate([(20, 5), (64, 5), (64,)]))
    edges = torch.tensor([0.0, 1.0, 2.0])
    with torch.device("meta"):
        values, indices = kernels.encode_topk(x, W, b, 3)
        out = [
            values,
            indices,
            *kernels.topk(x, 2),
            *kernels.encode_batch_topk(x, W, b, 3),
            *kernels.encode_relu(x, W, b),
        ]
        out += [
            kernels.decode(values, indices, W),
            kernels.contract(x, indices, W),
            *kernels.segment(values, indices, 64, edges, 2),
        ]
        out += [kernels.weight_gradient(values, indices, x, 64), *kernels.sae_gradient(x, x, values, indices, W)]
        out += preselect.select_topk(x, W, b, 3)
    assert {tensor.device.type for tensor in out} == {"cpu"}
