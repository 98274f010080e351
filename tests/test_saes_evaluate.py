import importlib
import json
from itertools import pairwise

import pytest
import torch
import toys
from saes_toys import INFO, MLP_IN, MLP_OUT, RESID, cached, dictionary, model, shards_of
from torch.testing import assert_close
from unweave.saes import Dictionary, TrainConfig, UserError, evaluate, features, splice, train
from unweave.saes.evaluate import check_shards
from unweave.saes.rows import held_out_rows
from unweave.saes.statistics import bootstrap

F64 = torch.float64
KEEP = {"drop_positions": 1, "max_norm": {}}


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return cached(tmp_path_factory.mktemp("evaluate") / "a", (RESID, MLP_IN, MLP_OUT), count=30)


def zero_dictionary(site=RESID, site_out="", b_dec=None, **metadata):
    """A dictionary that always writes b_dec: no latent ever fires."""
    own = dictionary(site=site, site_out=site_out, **metadata)
    own.b_enc -= 1e6
    own.b_dec.copy_(torch.zeros(64) if b_dec is None else b_dec)
    return own


def perfect(site=RESID, site_out="", skip=False, d=toys.WIDTH, **metadata):
    """A hand-made dictionary that reconstructs what it reads: two latents for each dimension, one for each sign."""
    own = dictionary(d, 2 * d, d, site=site, site_out=site_out, skip=skip, **metadata)
    both = torch.cat([torch.eye(d, dtype=F64), -torch.eye(d, dtype=F64)])
    for name, value in {"W_enc": both, "W_dec": both, "b_enc": torch.zeros(2 * d), "b_dec": torch.zeros(d)}.items():
        getattr(own, name).copy_(value)
    return own


def test_predicting_the_mean_scores_one(shards):
    kept = shards.positions >= 1
    mean = shards[RESID][kept].mean(0)
    metrics = evaluate(zero_dictionary(b_dec=mean, keep=KEEP), shards)
    assert metrics.fvu == pytest.approx(1.0, abs=1e-10)
    assert metrics.l0 == 0
    assert metrics.dead_share == 1
    assert metrics.dropped_share == pytest.approx(float((~kept).double().mean()))
    assert metrics.rows == metrics.rows_available == len(shards)
    low, high = metrics.fvu_interval
    assert low == pytest.approx(1.0)
    assert high == pytest.approx(1.0)


def test_numbers_are_their_definitions(shards):
    own = dictionary(keep={"drop_positions": 2, "max_norm": {RESID: float(shards[RESID][:].norm(dim=1).quantile(0.9))}})
    metrics = evaluate(own, shards)
    x = shards[RESID][:]
    kept = own.kept(shards.positions, {RESID: x})
    codes, x_hat = own.encode(x).dense(24), own(x)
    assert 0.1 < 1 - kept.double().mean() == pytest.approx(metrics.dropped_share)
    error, mean = (x - x_hat)[kept].square().sum(), x[kept].mean(0)
    assert metrics.fvu == pytest.approx(float(error / (x[kept] - mean).square().sum()), rel=1e-10)
    assert metrics.fvu_all == pytest.approx(
        float((x - x_hat).square().sum() / (x - x.mean(0)).square().sum()), rel=1e-10
    )
    assert metrics.l0 == pytest.approx(float((codes[kept] > 0).sum(1).double().mean()), rel=1e-10)
    assert_close(metrics.density.double(), (codes[kept] > 0).double().mean(0), rtol=1e-6, atol=1e-7)
    assert metrics.dead_share == pytest.approx(float(((codes[kept] > 0).sum(0) == 0).double().mean()))
    assert metrics.dense_share == pytest.approx(float((metrics.density > 0.1).double().mean()))
    cosine = torch.cosine_similarity(x[kept] - mean, x_hat[kept] - mean).mean()
    assert metrics.cosine == pytest.approx(float(cosine), rel=1e-8)
    assert metrics.norm_ratio == pytest.approx(float((x_hat[kept].norm(dim=1) / x[kept].norm(dim=1)).mean()), rel=1e-8)
    assert metrics.fvu_interval[0] < metrics.fvu < metrics.fvu_interval[1]


def test_intervals_draw_documents(shards):
    own = dictionary(keep=KEEP)
    own.b_enc -= float(own.encode(shards[RESID][:]).values.amin(1).median())  # not all k are active on every token
    metrics = evaluate(own, shards, model(), ce_tokens=10**6)
    kept = shards.positions >= 1
    x = shards[RESID][kept]
    active, cosine = own.encode(x).l0().double(), torch.cosine_similarity(x - x.mean(0), own(x) - x.mean(0))
    ratio = own(x).norm(dim=1) / x.norm(dim=1)
    for name, values in {"l0": active, "cosine": cosine, "norm_ratio": ratio}.items():
        sums = [
            [float(one.sum()), len(one)] for one in (values[shards.documents[kept] == i] for i in range(30)) if len(one)
        ]
        expected = bootstrap(torch.tensor(sums, dtype=F64), lambda s: s[:, 0] / s[:, 1], 0)
        assert metrics[f"{name}_interval"] == pytest.approx(expected, rel=1e-6), name
    for name in ("l0", "cosine", "norm_ratio", "kl", "ce_recovered"):
        assert metrics[f"{name}_interval"][0] < metrics[name] < metrics[f"{name}_interval"][1], name


def test_pieces_do_not_matter(shards, monkeypatch):
    own = dictionary(keep=KEEP)
    whole = evaluate(own, shards)
    for module, name in (("chunks", "CHUNK"), ("chunks", "ENCODED"), ("linear", "CHUNK")):
        monkeypatch.setattr(importlib.import_module(f"unweave.saes.judge.{module}"), name, 50)
    pieces = evaluate(own, shards)
    for name in ("fvu", "fvu_all", "l0", "dead_share", "cosine", "norm_ratio", "linear_fvu", "fvu_interval", "density"):
        assert_close(torch.as_tensor(pieces[name]), torch.as_tensor(whole[name]), rtol=1e-5, atol=1e-8)


def test_linear_fvu_of_an_sae_is_pca_of_the_same_rank(shards):
    own = dictionary(k=5, keep=KEEP)
    x = shards[RESID][:][shards.positions >= 1]
    x = x - x.mean(0)
    singular = torch.linalg.svdvals(x).square()
    assert evaluate(own, shards).linear_fvu == pytest.approx(float(singular[5:].sum() / singular.sum()), rel=1e-8)


def test_linear_fvu_of_a_transcoder_is_least_squares(shards):
    own = dictionary(site=MLP_IN, site_out=MLP_OUT, keep=KEEP)
    kept = shards.positions >= 1
    x, y = shards[MLP_IN][:][kept], shards[MLP_OUT][:][kept]
    x, y = x - x.mean(0), y - y.mean(0)
    left = y - x @ torch.linalg.lstsq(x, y).solution
    assert evaluate(own, shards).linear_fvu == pytest.approx(float(left.square().sum() / y.square().sum()), rel=1e-3)


def test_a_large_mean_costs_no_digits(tmp_path):
    x = torch.randn(400, 6, generator=torch.Generator().manual_seed(0)) * torch.logspace(-1, 0.5, 6)
    near = evaluate(dictionary(6, k=2, site="a"), shards_of(tmp_path / "near", {"a": x}))
    far = evaluate(dictionary(6, k=2, site="a"), shards_of(tmp_path / "far", {"a": x + 4096}))
    assert far.linear_fvu == pytest.approx(near.linear_fvu, rel=1e-3)


def test_held_out_documents_of_the_training_are_evaluated_and_the_others_fitted(tmp_path):
    task = torch.randn(800, 8, generator=torch.Generator().manual_seed(0)) * torch.logspace(-1, 1, 8)
    shards = shards_of(tmp_path / "a", {"a": task})
    config = TrainConfig(site="a", latents=16, k=3, tokens=256, batch=64, held_out=0.25)
    own = train(config, shards, device="cpu", progress=False)
    metrics, held = evaluate(own, shards), held_out_rows(shards, 0.25)
    assert metrics.documents == "held out"
    assert metrics.rows == int(held.sum()) == pytest.approx(200, abs=16)
    rule = own.kept(shards.positions, {"a": task})
    x, fit = task[held & rule].double(), task[~held & rule].double()
    assert metrics.fvu == pytest.approx(
        float((x - own(x.float())).square().sum() / (x - x.mean(0)).square().sum()), rel=1e-5
    )
    basis = torch.linalg.svd(fit - fit.mean(0)).Vh[:3].T
    x_hat = (x - fit.mean(0)) @ basis @ basis.T + fit.mean(0)
    assert metrics.linear_fvu == pytest.approx(
        float((x - x_hat).square().sum() / (x - x.mean(0)).square().sum()), rel=1e-4
    )
    other = shards_of(tmp_path / "b", {"a": task + 1})
    assert evaluate(own, other).documents == "all; not those of the training"
    assert evaluate(own, other).rows == 800


def test_of_many_rows_whole_documents_are_measured_and_it_is_said(tmp_path):
    x = torch.randn(800, 4, generator=torch.Generator().manual_seed(0))
    shards = shards_of(tmp_path / "a", {"a": x})
    metrics = evaluate(dictionary(4, site="a"), shards, max_rows=100)
    assert (metrics.rows, metrics.rows_available) == (112, 800)  # seven documents of 16 rows
    assert metrics.fvu != evaluate(dictionary(4, site="a"), shards, max_rows=100, seed=1).fvu


def test_bootstrap_interval_of_a_mean_is_that_of_theory():
    sums = torch.stack(
        [torch.randn(400, generator=torch.Generator().manual_seed(0), dtype=F64) + 3, torch.ones(400, dtype=F64)], 1
    )
    low, high = bootstrap(sums, lambda s: s[:, 0] / s[:, 1], 0)
    assert (high - low) == pytest.approx(2 * 1.96 / 400**0.5, rel=0.15)
    assert bootstrap(sums, lambda s: s[:, 0] / s[:, 1], 0) == [low, high]


def test_metrics_become_plain_json(shards):
    metrics = evaluate(dictionary(keep=KEEP), shards, model())
    plain = json.loads(json.dumps(metrics.to_dict()))
    assert sum(plain["density_decades"].values()) == 24 * (1 - plain["dead_share"])
    assert "density" not in plain
    with pytest.raises(AttributeError, match="no metric"):
        metrics.nothing  # noqa: B018


@pytest.mark.parametrize("site", [(RESID, ""), (MLP_IN, MLP_OUT)])
def test_cross_entropies_are_those_of_the_hooked_model(shards, site):
    own = dictionary(site=site[0], site_out=site[1], keep={"drop_positions": 2, "max_norm": {}})
    metrics = evaluate(own, shards, model(), ce_tokens=10**6, batch=4)
    mean = shards[own.write][:][shards.positions >= 2].mean(0)
    seen = {}

    def read(value, hook):
        seen["x"] = value

    def hooked(change, first):
        def write(value, hook):
            x = value if own.is_sae else seen["x"]
            out = value.clone()
            out[0, first:] = change(x[0, first:], value[0, first:])
            return out

        return [(own.read, read), (own.write, write)]

    ways = {
        "clean": [],
        "reconstructed": hooked(lambda x, y: own(x), 2),
        "zero": hooked(lambda x, y: y * 0, 2),
        "mean": hooked(lambda x, y: mean.expand_as(y), 2),
        "reconstructed_all": hooked(lambda x, y: own(x), 0),
        "zero_all": hooked(lambda x, y: y * 0, 0),
    }
    losses, kl, count = dict.fromkeys(ways, 0.0), 0.0, 0
    starts = [*(shards.positions == 0).nonzero().squeeze(1).tolist(), len(shards)]
    for start, stop in pairwise(starts):
        tokens, logs = shards.tokens[start:stop], {}
        for name, hooks in ways.items():
            with torch.no_grad():
                logs[name] = model().run_with_hooks(tokens[None], fwd_hooks=hooks)[0].log_softmax(-1)[:-1]
            losses[name] -= float(logs[name].gather(1, tokens[1:, None]).sum())
        kl += float((logs["clean"].exp() * (logs["clean"] - logs["reconstructed"])).sum())
        count += len(tokens) - 1
    assert metrics.ce_tokens == count
    for name, total in losses.items():
        assert metrics[f"ce_{name}"] == pytest.approx(total / count, rel=1e-5), name
    assert metrics.kl == pytest.approx(kl / count, rel=1e-3)
    assert metrics.ce_added == pytest.approx(metrics.ce_reconstructed - metrics.ce_clean)
    share = (losses["zero"] - losses["reconstructed"]) / (losses["zero"] - losses["clean"])
    assert metrics.ce_recovered == pytest.approx(share, rel=1e-3)
    assert metrics.ce_added_interval[0] <= metrics.ce_added <= metrics.ce_added_interval[1]


def test_a_perfect_dictionary_adds_nothing(shards):
    metrics = evaluate(perfect(keep=KEEP), shards, model())
    assert metrics.fvu < 1e-20
    assert metrics.ce_added == pytest.approx(0, abs=1e-6)
    assert metrics.kl == pytest.approx(0, abs=1e-6)
    assert metrics.ce_recovered == pytest.approx(1, abs=1e-4)


def logits(tokens, own=None, **options):
    with torch.no_grad():
        if own is None:
            return model()(tokens)
        with splice(model(), own if isinstance(own, list) else [own], **options):
            return model()(tokens)


PROMPT = toys.prompt(12)[None]


@pytest.mark.parametrize(
    "kind", [{}, dict(site=MLP_IN, site_out=MLP_OUT), dict(site=MLP_IN, site_out=MLP_OUT, skip=True)]
)
@pytest.mark.parametrize("everywhere", [False, True])
def test_reconstruction_plus_error_reproduces_the_model(kind, everywhere):
    own = dictionary(**kind, keep=KEEP)
    assert_close(logits(PROMPT, own, keep_error=True, everywhere=everywhere), logits(PROMPT), rtol=1e-10, atol=1e-10)
    assert (logits(PROMPT, own) - logits(PROMPT)).abs().max() > 1e-3


def test_a_perfect_dictionary_reproduces_the_model():
    several = [perfect(), perfect("blocks.0.hook_resid_post"), perfect("blocks.2.attn.hook_z")]
    assert_close(logits(PROMPT, several), logits(PROMPT), rtol=1e-10, atol=1e-10)


def test_a_transcoder_reads_one_site_and_writes_the_other():
    own = perfect(MLP_IN, MLP_OUT)
    copied = {}
    hooks = [(MLP_IN, lambda value, hook: copied.update(x=value)), (MLP_OUT, lambda value, hook: copied["x"])]
    with torch.no_grad():
        assert_close(logits(PROMPT, own), model().run_with_hooks(PROMPT, fwd_hooks=hooks), rtol=1e-10, atol=1e-10)


def test_positions_outside_the_rule_pass_through():
    seen = {}
    with torch.no_grad():
        clean = model().run_with_cache(PROMPT)[1][RESID]
    limit = float(clean[0].norm(dim=1).sort().values[-3])
    own = zero_dictionary(keep={"drop_positions": 3, "max_norm": {RESID: limit}})
    kept = own.kept(torch.arange(12), {RESID: clean[0]})
    assert 0 < kept.sum() < 9
    for everywhere, changed in ((False, kept), (True, torch.ones_like(kept))):
        after = [(f"blocks.{2}.hook_resid_pre", lambda value, hook: seen.update(y=value.clone()))]
        with torch.no_grad(), splice(model(), [own], everywhere=everywhere):
            model().run_with_hooks(PROMPT, fwd_hooks=after)
        assert_close(seen["y"][0], torch.where(changed[:, None], 0.0, clean[0]), rtol=1e-10, atol=1e-10)


def test_leaving_the_splice_leaves_the_model_as_it_was():
    with pytest.raises(ZeroDivisionError), splice(model(), [dictionary()]):
        1 / 0  # noqa: B018
    assert_close(logits(PROMPT), logits(PROMPT), rtol=0, atol=0)
    clean = toys.boot("gpt2")
    with torch.no_grad():
        assert_close(logits(PROMPT), clean(PROMPT), rtol=0, atol=0)


def test_an_error_kept_fixed_lets_gradients_flow_through_the_codes_only():
    own = perfect(keep=KEEP)
    own.b_enc.requires_grad_()
    with splice(model(), [own], keep_error=True):
        model()(PROMPT).square().sum().backward()
    assert own.b_enc.grad.abs().sum() > 0


def test_what_belongs_to_another_model_is_a_user_error(shards, tmp_path):
    other = dict(name="other", fingerprint="0" * 32, bos=0)
    own = dictionary(model=other)
    for attempt in (
        lambda: evaluate(own, shards),
        lambda: evaluate(dictionary(), shards, toys.boot("gpt2", seed=3)),
        lambda: splice(model(), [own]).__enter__(),
        lambda: features(model(), own, "w5"),
    ):
        with pytest.raises(UserError, match="weights"):
            attempt()
    with pytest.raises(UserError, match="expected a cached site"):
        evaluate(dictionary(site="blocks.0.hook_resid_post"), shards)
    with pytest.raises(UserError, match="expected a site of this model"):
        splice(model(), [dictionary(site="blocks.7.hook_resid_post")]).__enter__()
    check_shards(dictionary(4, site="a", model=INFO.dict()), shards_of(tmp_path / "a", {"a": torch.ones(3, 4)}))


@pytest.mark.parametrize("x", [torch.ones(1, 4), torch.ones(9, 4), torch.randn(16, 4)])
def test_too_little_to_measure_is_a_user_error(tmp_path, x):
    keep = {"max_norm": {"a": 1e-6}} if len(x) == 16 else {}
    with pytest.raises(UserError, match="rows that differ"):
        evaluate(dictionary(4, site="a", keep=keep), shards_of(tmp_path / "a", {"a": x}))


def test_blocks_of_one_token_predict_nothing(tmp_path):
    from unweave.saes import cache

    shards = cache(model(), [torch.tensor([i]) for i in range(9)], [RESID], tmp_path / "a", dtype=F64, progress=False)
    with pytest.raises(UserError, match="two tokens"):
        evaluate(dictionary(), shards, model())


def test_the_feature_table_is_encode_at_every_token():
    own = dictionary(k=7, keep=KEEP)
    table = features(model(), own, "w5 w9 w5 w77", top=3)
    with torch.no_grad():
        x = model().run_with_cache(torch.tensor([[0, 5, 9, 5, 77]]))[1][RESID][0]
    codes = own.encode(x)
    expected = [
        (position, token, latent, value, position > 0)
        for position, token in enumerate(["<s>", "w5", "w9", "w5", "w77"])
        for value, latent in zip(codes.values[position, :3].tolist(), codes.indices[position, :3].tolist(), strict=True)
        if value > 0
    ]
    assert [row[:3] + row[4:] for row in table] == [row[:3] + row[4:] for row in expected]
    assert [row.value for row in table] == pytest.approx([row[3] for row in expected], rel=1e-8)
    best = codes.dense(24)[1:].amax(0)
    ranked = features(model(), own, "w5 w9 w5 w77", top=7).latents()
    assert [latent for latent, _ in ranked] == best.argsort(descending=True)[: int((best > 0).sum())].tolist()
    assert str(table).count("\n") == 4
    assert "outside the training rule" in str(table).splitlines()[0]


def test_features_of_impossible_text_are_a_user_error():
    for text in ("", "w5 " * 64):
        with pytest.raises(UserError, match="expected text"):
            features(model(), dictionary(), text)


def test_a_float32_dictionary_runs_in_a_float64_model(shards):
    own = Dictionary(dictionary().config, dict(dictionary().float().named_parameters()), {"keep": KEEP})
    assert evaluate(own, shards, model()).fvu == pytest.approx(evaluate(dictionary(keep=KEEP), shards).fvu, rel=1e-4)
    assert_close(logits(PROMPT, own, keep_error=True), logits(PROMPT), rtol=1e-6, atol=1e-6)
