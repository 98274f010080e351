"""Virtual weights against dense brute force, against the norms of real modules, and weighed by a corpus."""

import pytest
import torch
from toys import WIDTH, boot
from unweave.circuits.parts import Part, Rule
from unweave.circuits.simplify.virtual import expected_residual_attribution, virtual_weights
from unweave.saes.errors import UserError
from unweave.saes.keep import KeepRule
from unweave.saes.shards import Batch

LATENTS = 20


def part(read, *writes, seed=0, d=WIDTH, latents=LATENTS, k=4, keep=None):
    """A random TopK part."""
    generator = torch.Generator().manual_seed(seed)

    def tensor(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    W_dec = {site: tensor(latents, d) for site in writes}
    b_dec = {site: tensor(d) for site in writes}
    return Part(read, tensor(latents, d), tensor(latents), W_dec, b_dec, Rule("topk", k=k), keep=keep or KeepRule())


def transcoder(layer, *, seed=0, **options):
    return part(f"blocks.{layer}.mlp.hook_in", f"blocks.{layer}.mlp.hook_out", seed=seed, **options)


def dense(found, sources=LATENTS):
    """[target source] with 0 for what was not kept."""
    return torch.zeros(len(found.weights), sources, dtype=found.weights.dtype).scatter_(1, found.latents, found.weights)


def cross_layer(latents=LATENTS):
    """A cross-layer part that writes two layers, a transcoder between them, an SAE after both."""
    clt = part("blocks.0.mlp.hook_in", "blocks.0.mlp.hook_out", "blocks.1.mlp.hook_out", seed=1, latents=latents)
    sae = part("blocks.2.hook_resid_post", "blocks.2.hook_resid_post", seed=3)
    return [clt, transcoder(1, seed=2), sae]


@pytest.mark.parametrize("memory_mib", [0, 256])
def test_virtual_weights_are_the_products_of_what_was_written_before(memory_mib):
    clt, middle, sae = cross_layer(latents=23)
    found = {
        (one.source, one.target): one for one in virtual_weights([clt, [middle, sae]], top=99, memory_mib=memory_mib)
    }
    first, second = clt.W_dec.values()
    expected = {
        (0, 1): middle.W_enc @ first.T,  # block 1's MLP writes after block 1's MLP reads
        (0, 2): sae.W_enc @ (first + second).T,
        (1, 2): sae.W_enc @ middle.W_dec["blocks.1.mlp.hook_out"].T,
    }
    assert found.keys() == expected.keys()
    for pair, weights in expected.items():
        torch.testing.assert_close(dense(found[pair], weights.shape[1]), weights, rtol=1e-10, atol=1e-12)


def test_only_the_strongest_sources_are_kept_in_order():
    whole, some = (virtual_weights(cross_layer(), top=top)[0] for top in (LATENTS, 3))
    assert torch.equal(some.weights, whole.weights[:, :3])
    assert torch.equal(some.latents, whole.latents[:, :3])
    assert (whole.weights.abs().diff(dim=1) <= 0).all()


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "phi", "opt", "neox"])
def test_gains_are_those_of_the_models_norms(name):
    """A norm is its linear part over a denominator, so each source's column has the direction that the modules give it."""
    model = boot(name)
    source, target = transcoder(0, seed=1), transcoder(2, seed=2)
    (found,) = virtual_weights([source, target], model, top=LATENTS)
    written = source.W_dec["blocks.0.mlp.hook_out"]

    def linear(module, x):
        return module(x[None])[0] - module(torch.zeros_like(x)[None])[0]

    with torch.no_grad():
        below, above = model.blocks[0].submodules, model.blocks[2].submodules
        written = linear(below["ln2_post"], written) if "ln2_post" in below else written
        expected = target.W_enc @ linear(above.get("ln2", above["ln1"]), written).T.double()
    assert not torch.allclose(dense(found), target.W_enc @ source.W_dec["blocks.0.mlp.hook_out"].T, rtol=0.1)
    ours, theirs = (torch.nn.functional.normalize(matrix, dim=0) for matrix in (dense(found), expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def connected(*order, model=None):
    try:
        return {(one.source, one.target) for one in virtual_weights(list(order), model, top=1)}
    except UserError:
        return set()


def test_a_write_is_seen_by_what_reads_the_stream_later():
    def sae(site):
        return part(f"blocks.{site}", f"blocks.{site}")

    assert connected(transcoder(1), transcoder(1, seed=1)) == set()
    assert connected(transcoder(1), transcoder(0)) == {(1, 0)}
    assert connected(transcoder(0), sae("0.hook_resid_post")) == {(0, 1)}
    assert connected(transcoder(0), sae("0.hook_resid_mid")) == {(1, 0)}
    assert connected(sae("0.attn.hook_out"), transcoder(0)) == {(0, 1)}
    assert connected(sae("0.hook_resid_post"), sae("0.hook_resid_post")) == set()
    assert connected(sae("0.hook_resid_post"), sae("1.hook_resid_pre")) == set()
    assert connected(sae("0.hook_resid_post"), transcoder(1), sae("2.attn.hook_out")) == {(0, 1)}
    assert connected(sae("1.hook_resid_pre"), sae("1.hook_resid_mid"), transcoder(1)) == {(0, 1), (0, 2), (1, 2)}


def test_in_a_parallel_block_the_mlp_does_not_see_the_attention():
    attention = part("blocks.1.attn.hook_out", "blocks.1.attn.hook_out")
    assert connected(attention, transcoder(1)) == {(0, 1)}
    assert connected(attention, transcoder(1), model=boot("phi")) == set()
    assert connected(attention, transcoder(2), model=boot("phi")) == {(0, 1)}


def corpus(tokens=200, seed=0):
    """Activations in which the first latents of `cross_layer` are often active and some never are."""
    generator = torch.Generator().manual_seed(seed)
    sites = ("blocks.0.mlp.hook_in", "blocks.1.mlp.hook_in", "blocks.2.hook_resid_post")
    return {site: torch.randn(tokens, WIDTH, generator=generator, dtype=torch.float64) for site in sites}


def expectations(source, target, x):
    """E[1(a_t > 0) a_s] and E[a_t a_s] / E[a_t] on dense codes."""
    a_s, a_t = (one.encode(x[one.read]).dense(one.latents) for one in (source, target))
    mass = a_t.mean(0)
    return (a_t > 0).double().T @ a_s / len(a_t), a_t.T @ a_s / len(a_t) / torch.where(mass == 0, 1, mass)[:, None]


@pytest.mark.parametrize("memory_mib", [0, 256])
@pytest.mark.parametrize("kind", ["era", "twera"])
def test_expected_attribution_is_virtual_weight_times_expectation(kind, memory_mib):
    three, x = cross_layer(), corpus()
    found = expected_residual_attribution(three, [x], kind=kind, top=LATENTS, memory_mib=memory_mib)
    for one, plain in zip(found, virtual_weights(three, top=LATENTS), strict=True):
        era, twera = expectations(three[one.source], three[one.target], x)
        expected = dense(plain) * (era if kind == "era" else twera)
        torch.testing.assert_close(dense(one), expected, rtol=1e-10, atol=1e-12)


def test_the_split_into_batches_does_not_matter():
    three, x = cross_layer(), corpus()
    pieces = [{site: rows[part] for site, rows in x.items()} for part in (slice(0, 1), slice(1, 70), slice(70, 200))]
    for one, other in zip(*(expected_residual_attribution(three, batches) for batches in ([x], pieces)), strict=True):
        torch.testing.assert_close(one.weights, other.weights, rtol=1e-10, atol=1e-12)


def test_a_target_that_is_never_active_has_no_attribution():
    three, x = cross_layer(), corpus()
    three[2].b_enc[5] = -1e6
    found = expected_residual_attribution(three, [x], top=LATENTS)[-1]
    assert (found.weights[5] == 0).all()
    assert found.weights.isfinite().all()


def test_excluded_rows_count_for_no_dictionary():
    three, x = cross_layer(), corpus()
    three[1] = transcoder(1, seed=2, keep=KeepRule(drop_positions=3))
    positions = torch.arange(200) % 10
    rows = positions >= 3
    batch = Batch(x, positions, positions, positions)
    later = {site: values[rows] for site, values in x.items()}
    for one, other in zip(*(expected_residual_attribution(three, [data]) for data in (batch, later)), strict=True):
        torch.testing.assert_close(one.weights, other.weights, rtol=1e-10, atol=1e-12)


def test_what_cannot_be_computed_is_refused():
    three = cross_layer()
    with pytest.raises(UserError, match="reads the stream after"):
        virtual_weights([transcoder(1)])
    with pytest.raises(UserError, match=r"activations of blocks\.0\.mlp\.hook_in"):
        expected_residual_attribution(three, [{"blocks.1.mlp.hook_in": torch.zeros(2, WIDTH)}])
    with pytest.raises(UserError, match="at least one token"):
        expected_residual_attribution(three, [])
    with pytest.raises(UserError, match="'era' or 'twera'"):
        expected_residual_attribution(three, [corpus()], kind="mean")
    with pytest.raises(UserError, match="top of at least 1"):
        virtual_weights(three, top=0)
