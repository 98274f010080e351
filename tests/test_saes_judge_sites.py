"""Several sites at once: what evaluate says of crosscoders, cross-layer and shared dictionaries, and what splicing them does."""

from itertools import pairwise

import pytest
import torch
import toys
from saes_toys import cached, model
from torch.testing import assert_close
from unweave.saes import Dictionary, DictionaryConfig, UserError, evaluate, splice
from unweave.saes.dictionary import shapes_of
from unweave.saes.layout import Layout
from unweave.saes.splice import replacing

F64, D = torch.float64, toys.WIDTH
RESIDS = tuple(f"blocks.{layer}.hook_resid_post" for layer in range(3))
INS = tuple(f"blocks.{layer}.mlp.hook_in" for layer in range(3))
OUTS = tuple(f"blocks.{layer}.mlp.hook_out" for layer in range(3))
PROMPT = toys.prompt(12)[None]
KINDS = {
    "crosscoder": dict(site=RESIDS),
    "acausal transcoder": dict(site=INS, site_out=OUTS),
    "one to many": dict(site=INS[:1], site_out=OUTS),
    "cross-layer": dict(site=INS, site_out=OUTS, across="cross_layer"),
    "cross-layer of a stream": dict(site=RESIDS, across="cross_layer"),
    "shared": dict(site=RESIDS, across="shared"),
    "shared transcoder": dict(site=INS, site_out=OUTS, across="shared"),
}
KEEP = {"drop_positions": 2, "max_norm": {}}


def made(kind: str, *, size: float = 0.3, activation: str = "topk", **metadata) -> Dictionary:
    """A random dictionary of a kind, every tensor filled."""
    config = DictionaryConfig(latents=24, k=4, activation=activation, **KINDS[kind])
    layout = Layout(config, dict.fromkeys(config.site, D), dict.fromkeys(config.sites_out, D))
    generator = torch.Generator().manual_seed(0)
    tensors = {
        name: size * torch.randn(shape, generator=generator, dtype=F64) for name, shape in shapes_of(layout).items()
    }
    for block in layout.blocks:  # a cross-layer decoder is zero at the sites before its own
        tensors["W_dec"][block.latents, : block.writes.start] = 0
    return Dictionary(config, tensors, {"keep": KEEP, **metadata})


def silent(kind: str, means: dict[str, torch.Tensor], **metadata) -> Dictionary:
    """A dictionary whose latents never fire, so that it writes `means`."""
    own = made(kind, **metadata)
    own.b_enc -= 1e6
    flat = torch.stack if own.layout.is_shared else torch.cat
    own.b_dec.copy_(flat([means[site] for site in own.config.sites_out]))
    if own.is_sae:  # b_dec is subtracted before encoding, which nothing can make fire
        assert own.layout.is_shared
    return own


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return cached(tmp_path_factory.mktemp("sites") / "a", (*RESIDS, *INS, *OUTS), count=20)


def written(own: Dictionary, part: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Each written site's reconstruction, from the definition: dense codes of each block."""
    if own.layout.is_shared:
        return dict(zip(own.config.sites_out, (own.at(s)(part[s]) for s in own.config.site), strict=True))
    x, out = own.layout.flat(part, own.layout.reads), own.b_dec.expand(len(next(iter(part.values()))), -1).clone()
    for block in own.layout.blocks:
        pre = x[:, block.reads] @ own.W_enc[block.latents].T + own.b_enc[block.latents]
        order = pre.argsort(1, descending=True)[:, : own.config.k]
        out += torch.zeros_like(pre).scatter(1, order, pre.gather(1, order).relu()) @ own.W_dec[block.latents]
    return own.layout.split(out, own.layout.writes)


@pytest.mark.parametrize("kind", KINDS)
def test_predicting_the_mean_of_every_site_scores_one(kind, shards):
    kept = shards.positions >= 2
    means = {site: shards[site][kept].mean(0) for site in shards.sites}
    metrics = evaluate(silent(kind, means), shards)
    sites = KINDS[kind].get("site_out", KINDS[kind]["site"])
    assert metrics.fvu == pytest.approx(1, abs=1e-10)
    assert metrics.fvu_by_site == pytest.approx(dict.fromkeys(sites, 1.0), abs=1e-10)
    assert metrics.l0 == 0
    assert metrics.dead_share == 1


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_of_a_site_are_their_definitions(kind, shards):
    own = made(kind)
    metrics, kept = evaluate(own, shards), shards.positions >= 2
    part = {site: shards[site][:] for site in own.sites}
    fvu = {}
    for site, y_hat in written(own, part).items():
        y = part[site][kept]
        fvu[site] = float((y - y_hat[kept]).square().sum() / (y - y.mean(0)).square().sum())
        ratio = (y_hat[kept].norm(dim=1) / y.norm(dim=1)).mean()
        assert metrics.norm_ratio_by_site[site] == pytest.approx(float(ratio), rel=1e-8)
        assert metrics.fvu_interval_by_site[site][0] < fvu[site] < metrics.fvu_interval_by_site[site][1]
    assert metrics.fvu_by_site == pytest.approx(fvu, rel=1e-8)
    assert metrics.fvu == pytest.approx(sum(fvu.values()) / len(fvu), rel=1e-10)


@pytest.mark.parametrize("kind", ["shared", "shared transcoder"])
def test_a_shared_dictionary_at_a_site_is_the_dictionary_of_that_site(kind, shards):
    own = made(kind)
    whole, each = evaluate(own, shards), [evaluate(own.at(site), shards) for site in own.config.site]
    assert list(whole.fvu_by_site.values()) == pytest.approx([one.fvu for one in each], rel=1e-10)
    assert list(whole.l0_by_site.values()) == pytest.approx([one.l0 for one in each])
    assert whole.l0 == pytest.approx(sum(one.l0 for one in each) / 3)
    assert_close(whole.density, torch.stack([one.density for one in each]).mean(0), rtol=1e-5, atol=1e-7)
    assert whole.linear_fvu == pytest.approx(sum(one.linear_fvu for one in each) / 3, rel=1e-8)


def test_linear_yardsticks_of_several_sites(shards):
    kept = shards.positions >= 2
    x = {site: shards[site][kept] - shards[site][kept].mean(0) for site in shards.sites}
    scaled = torch.cat([x[site] / x[site].square().mean().sqrt() for site in RESIDS], 1)
    basis = torch.linalg.svd(scaled, full_matrices=False).Vh[:4].T
    left = (scaled - scaled @ basis @ basis.T).square().sum() / scaled.square().sum()
    assert evaluate(made("crosscoder"), shards).linear_fvu == pytest.approx(float(left), rel=1e-6)
    errors = []
    for number, site in enumerate(OUTS):
        read = torch.cat([x[name] for name in INS[: number + 1]], 1)
        missed = x[site] - read @ torch.linalg.lstsq(read, x[site], driver="gelsd").solution
        errors.append(float(missed.square().sum() / x[site].square().sum()))
    assert evaluate(made("cross-layer"), shards).linear_fvu == pytest.approx(sum(errors) / 3, rel=1e-5)
    assert evaluate(made("cross-layer of a stream"), shards).linear_fvu is None


def logits(own=None, tokens=PROMPT, **options):
    with torch.no_grad():
        if own is None:
            return model()(tokens)
        with splice(model(), [own], **options):
            return model()(tokens)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("everywhere", [False, True])
def test_reconstruction_plus_error_of_every_site_reproduces_the_model(kind, everywhere):
    own = made(kind)
    assert_close(logits(own, keep_error=True, everywhere=everywhere), logits(), rtol=1e-10, atol=1e-10)
    assert (logits(own) - logits()).abs().max() > 1e-3


def values(hooks=(), sites=(*RESIDS, *INS, *OUTS), before=True):
    """What stands at the sites in a pass with these hooks, seen before or after they replace."""
    seen = {}
    looks = [(site, lambda value, hook, site=site: seen.__setitem__(site, value[0].clone())) for site in sites]
    with torch.no_grad():
        model().run_with_hooks(PROMPT, fwd_hooks=[*looks, *hooks] if before else [*hooks, *looks])
    return seen


def test_a_cross_layer_dictionary_writes_from_what_it_read_in_the_same_pass():
    """By hand: layer after layer, the MLP's output is set to the sum over the layers read so far, in one pass."""
    own = made("cross-layer")
    reads, expected = {}, {}

    def write(number):
        def hook(value, hook):
            part = {site: reads.get(site, torch.zeros(12, D, dtype=F64)) for site in INS}
            # Latents of later layers write nothing here, whatever they read.
            out = value.clone()
            out[0, 2:] = written(own, part)[OUTS[number]][2:]
            expected[OUTS[number]] = out[0]
            return out

        return hook

    hooks = [(site, lambda value, hook, site=site: reads.__setitem__(site, value[0])) for site in INS]
    with torch.no_grad():
        by_hand = model().run_with_hooks(PROMPT, fwd_hooks=[*hooks, *[(site, write(i)) for i, site in enumerate(OUTS)]])
    assert_close(logits(own), by_hand, rtol=1e-10, atol=1e-10)
    clean = values()
    assert (reads[INS[2]] - clean[INS[2]])[2:].abs().max() > 1e-3  # the earlier replacements were felt


@pytest.mark.parametrize("kind", ["crosscoder", "acausal transcoder"])
def test_a_crosscoder_writes_from_a_pass_without_it(kind):
    own, clean = made(kind), values()
    target = written(own, {site: clean[site] for site in own.sites})

    def write(site):
        def hook(value, hook):
            out = value.clone()
            out[0, 2:] = target[site][2:]
            return out

        return hook

    with torch.no_grad():
        by_hand = model().run_with_hooks(PROMPT, fwd_hooks=[(site, write(site)) for site in own.config.sites_out])
        with splice(model(), [own]):
            hooked = model().run_with_hooks(PROMPT, fwd_hooks=[])
    assert_close(logits(own), by_hand, rtol=1e-10, atol=1e-10)
    assert_close(hooked, by_hand, rtol=1e-10, atol=1e-10)
    assert_close(logits(), logits(), rtol=0, atol=0)
    assert "forward" not in vars(model())


def test_norm_limits_of_all_sites_hold_where_all_are_known():
    clean = values()
    limits = {site: float(clean[site].norm(dim=1).sort().values[-4]) for site in RESIDS}
    own = made("crosscoder", keep={"drop_positions": 1, "max_norm": limits})
    kept = own.kept(torch.arange(12), {site: clean[site] for site in RESIDS})
    assert 2 < kept.sum() < 11
    seen = []

    def note(site, reconstruct, y):
        seen.append(len(y))
        return 100 * y  # what that leads to later exceeds the limits, and does not count

    with torch.no_grad(), replacing(model(), own, note):
        model()(PROMPT)
    assert seen == [int(kept.sum())] * 3


def test_one_written_site_can_be_replaced_alone():
    own, clean = made("cross-layer"), values()
    with torch.no_grad(), replacing(model(), own, lambda site, reconstruct, y: torch.zeros_like(y), sites=[OUTS[1]]):
        seen = values(sites=OUTS, before=False)
    assert_close(seen[OUTS[0]], clean[OUTS[0]], rtol=0, atol=0)
    assert not seen[OUTS[1]][2:].any()


@pytest.mark.parametrize("kind", ["crosscoder", "cross-layer", "shared"])
def test_cross_entropies_replace_all_written_sites_and_each_alone(kind, shards):
    own = made(kind)
    metrics = evaluate(own, shards, model(), ce_tokens=10**6)
    totals = dict.fromkeys(("all", *own.config.sites_out), 0.0)
    starts = [*(shards.positions == 0).nonzero().squeeze(1).tolist(), len(shards)]
    count = 0
    for start, stop in pairwise(starts):
        tokens = shards.tokens[start:stop]
        for name in totals:
            with (
                torch.no_grad(),
                replacing(model(), own, lambda s, made, y: made(), sites=None if name == "all" else [name]),
            ):
                log_p = model()(tokens[None])[0].log_softmax(-1)[:-1]
            totals[name] -= float(log_p.gather(1, tokens[1:, None]).sum())
        count += len(tokens) - 1
    assert metrics.ce_reconstructed == pytest.approx(totals.pop("all") / count, rel=1e-5)
    added = {site: total / count - metrics.ce_clean for site, total in totals.items()}
    assert metrics.ce_added_by_site == pytest.approx(added, abs=1e-5)


def test_sites_in_the_wrong_order_are_a_user_error():
    config = DictionaryConfig(latents=24, k=4, site=INS[::-1], site_out=OUTS[::-1], across="cross_layer")
    tensors = {n: t.detach() for n, t in made("cross-layer").named_parameters()}
    own = Dictionary(config, tensors, {"keep": KEEP})
    with pytest.raises(UserError, match="order of the model"):
        logits(own)
    # Nor is it written from what an earlier pass has left.
    asks = []
    with torch.no_grad(), replacing(model(), own, lambda site, made, y: made() if asks else y):
        model()(PROMPT)
        asks.append(True)
        with pytest.raises(UserError, match="order of the model"):
            model()(PROMPT)


@pytest.mark.parametrize("activation", ["batch_topk", "relu", "gated", "jumprelu"])
def test_every_rule_is_spliced_across_layers(activation):
    own = made("cross-layer", activation=activation)
    assert_close(logits(own, keep_error=True), logits(), rtol=1e-10, atol=1e-10)
    clean = values()
    with torch.no_grad():
        seen = []
        with replacing(model(), own, lambda s, made, y: seen.append((made(), y)) or y):
            model()(PROMPT)
    assert_close(seen[2][0], own({s: clean[s][2:] for s in INS})[:, 2], rtol=1e-10, atol=1e-10)
