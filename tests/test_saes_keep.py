"""The exclusion rule itself: what it leaves out and why, what it clips, how it is counted and kept."""

import json

import pytest
import torch
from saes_toys import RESID, cached, dictionary, model, shards_of
from torch.testing import assert_close
from unweave.saes import Dictionary, TrainConfig, UserError, evaluate, splice, stream, train
from unweave.saes.keep import KeepRule, added, fit_keep_rule
from unweave.saes.rows import ShardRows

ROWS = 256


def rows_of(d=8, massive=(60, 130, 201), seed=0):
    x = torch.randn(ROWS, d, generator=torch.Generator().manual_seed(seed)) + 1
    x[list(massive)] *= 50
    return x


def config(**changes):
    return TrainConfig(
        **{**dict(site="a", latents=16, k=3, batch=64, tokens=64 * 12, held_out=0.0, drop_norm=5.0), **changes}
    )


def test_a_worked_example():
    """Positions begin anew with the second document; id 1 is special; the limit is 2 at `a` and 3 at `b`."""
    rule = KeepRule(1, {"a": 2.0, "b": 3.0}, (1,))
    positions, tokens = torch.tensor([0, 1, 2, 3, 0, 1, 2]), torch.tensor([1, 5, 1, 6, 1, 7, 8])
    norms = {"a": torch.tensor([9.0, 2, 9, 2.1, 1, 1, 1]), "b": torch.tensor([9.0, 3, 1, 3.1, 1, 3.1, 1])}
    activations = {site: norm[:, None] for site, norm in norms.items()}
    assert rule.mask(positions, activations, tokens).tolist() == [False, True, False, False, False, False, True]
    assert rule.mask(positions, activations).tolist() == [
        False,
        True,
        False,
        False,
        False,
        False,
        True,
    ]  # row 2 is massive
    assert rule.mask(None, {"b": activations["b"]}).tolist() == [False, True, True, False, True, False, True]
    found = rule.reasons(positions, norms, tokens)
    assert rule.counts(found) == {"by_position": 2, "by_token": 1, "by_norm": {"a": 1, "b": 2}}
    clipping = KeepRule(1, rule.max_norm, (1,), "clip")
    assert clipping.counts(found) == {"by_position": 2, "by_token": 1, "clipped": {"a": 1, "b": 2}}
    assert clipping.trained(found).tolist() == [False, True, False, True, False, True, True]
    assert clipping.mask(positions, activations, tokens).tolist() == rule.mask(positions, activations, tokens).tolist()


def test_counts_of_parts_add_up_to_those_of_the_whole():
    x, tokens, positions = rows_of(), torch.arange(ROWS) % 7, torch.arange(ROWS) % 8
    rule = KeepRule(1, {"a": 20.0}, (3, 5))
    parts = {}
    for piece in torch.arange(ROWS).split(50):
        parts = added(parts, rule.counts(rule.reasons_of(positions[piece], {"a": x[piece]}, tokens[piece])))
    whole = rule.counts(rule.reasons_of(positions, {"a": x}, tokens))
    assert parts == whole and whole["by_norm"]["a"] > 0
    kept = rule.mask(positions, {"a": x}, tokens)
    assert whole["by_position"] + whole["by_token"] + whole["by_norm"]["a"] == int((~kept).sum())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_clipping_shortens_massive_rows_alone_and_keeps_their_direction(dtype):
    x = rows_of().to(dtype)
    x[5] = 0
    rule = KeepRule(0, {"a": 12.0}, (), "clip")
    clipped = rule.clip({"a": x, "b": x})
    is_massive = x.float().norm(dim=1) > 12
    assert clipped["b"] is x and 3 <= is_massive.sum() < 20
    assert torch.equal(clipped["a"][~is_massive].to(dtype), x[~is_massive])
    assert_close(clipped["a"][is_massive].norm(dim=1).float(), torch.full((int(is_massive.sum()),), 12.0))
    assert_close(torch.cosine_similarity(clipped["a"].double(), x.double())[is_massive].min().item(), 1.0)
    unchanged = {"a": x}
    assert KeepRule(0, {"a": 12.0}).clip(unchanged) is unchanged is KeepRule(1, {"b": 1.0}, (), "clip").clip(unchanged)


def test_limits_are_medians_of_what_position_and_id_leave():
    norms, positions = {"a": torch.tensor([900.0, 1, 2, 3, 800, 700])}, torch.tensor([0, 1, 2, 3, 4, 5])
    tokens = torch.tensor([0, 4, 4, 4, 9, 9])
    assert fit_keep_rule(norms, positions, 1, 10.0, tokens, (9,)) == KeepRule(1, {"a": 20.0}, (9,))
    assert fit_keep_rule(norms, None, 1, 10.0).max_norm == {"a": 30.0}
    assert fit_keep_rule(norms, positions, 1, 0.0, tokens, (9,), "clip") == KeepRule(1, {}, (9,), "clip")


@pytest.mark.parametrize("rule", [KeepRule(), KeepRule(2, {"a": 1 / 3, "b": 7.0}, (0, 2**31 - 1), "clip")])
def test_a_rule_is_saved_with_its_dictionary(tmp_path, rule):
    dictionary(keep=rule.to_dict()).save(tmp_path / "own")
    assert Dictionary.load(tmp_path / "own").keep_rule == rule


def test_what_older_files_lack_drops_nothing():
    assert KeepRule.from_dict({"drop_positions": 1, "max_norm": {"a": 2.0}}) == KeepRule(1, {"a": 2.0}, (), "drop")
    assert KeepRule.from_dict({}) == KeepRule()


@pytest.mark.parametrize(
    "wrong", [{"drop_tokens": "12"}, {"drop_tokens": [1.5]}, {"drop_tokens": [-1]}, {"drop_tokens": [2**31]}, {"drop_tokens": {"1": 2}},
              {"massive": "keep"}, {"massive": ["clip"]}, {"max_norm": 3}, {"max_norm": {"a": "x"}}],
)  # fmt: skip
def test_what_is_no_rule_is_a_user_error_when_a_folder_is_read(tmp_path, wrong):
    dictionary().save(tmp_path / "own")
    cfg = json.loads((tmp_path / "own" / "cfg.json").read_text())
    cfg["metadata"]["unweave"]["keep"] = wrong
    (tmp_path / "own" / "cfg.json").write_text(json.dumps(cfg))
    with pytest.raises(UserError, match="malformed"):
        Dictionary.load(tmp_path / "own")


# Training


def test_special_tokens_of_the_shards_are_left_out_unless_told_otherwise(tmp_path):
    shards = shards_of(tmp_path / "shards", {"a": rows_of(massive=())})
    special = sorted(set(shards.tokens[[9, 17]].tolist()))
    shards.manifest["special"] = special
    is_special = torch.isin(shards.tokens, torch.tensor(special))
    rows = ShardRows(config(), shards)
    left = (shards.positions > 0) & ~is_special
    assert rows.rows.tolist() == left.nonzero().squeeze(1).tolist() and rows.keep.drop_tokens == tuple(special)
    assert rows.metadata["rows"]["by_token"] == int((is_special & (shards.positions > 0)).sum()) > 0
    whole = ShardRows(config(drop_special=False), shards)
    assert whole.rows.tolist() == (shards.positions > 0).nonzero().squeeze(1).tolist() and whole.keep.drop_tokens == ()
    shards.manifest.pop("special")
    assert ShardRows(config(), shards).keep == whole.keep


@pytest.mark.parametrize("massive", ["drop", "clip"])
def test_massive_rows_are_dropped_or_seen_at_the_limit(tmp_path, massive):
    x = rows_of()
    shards = shards_of(tmp_path / "shards", {"a": x})
    rows = ShardRows(config(massive=massive), shards)
    limit = rows.keep.max_norm["a"]
    left = shards.positions > 0
    is_massive = left & (x.norm(dim=1) > limit)
    assert int(is_massive.sum()) == 3
    wanted = left if massive == "clip" else left & ~is_massive
    assert rows.rows.tolist() == wanted.nonzero().squeeze(1).tolist()
    counts = {"by_position": ROWS // 8, "by_token": 0, "clipped" if massive == "clip" else "by_norm": {"a": 3}}
    dropped = int((~wanted).sum())
    assert rows.metadata["rows"] == {"cached": ROWS, "dropped": dropped, **counts, "training": ROWS - dropped}
    shown = x[wanted] * (limit / x[wanted].norm(dim=1, keepdim=True)).clamp_max(1)
    assert_close(rows.scaling.mean_in, shown.double().mean(0).float())
    seen = torch.cat([pair.x for pair, _ in zip(rows.batches(0), range(4), strict=False)])
    assert float(seen.norm(dim=1).max()) <= limit * (1 + 1e-6)
    assert bool((seen.norm(dim=1) > 0.999 * limit).any()) == (massive == "clip")
    own = train(config(massive=massive), shards, progress=False, device="cpu")
    assert own.metadata["rows"] == rows.metadata["rows"] and own.keep_rule.massive == massive
    assert own.kept(shards.positions, {"a": x}).tolist() == (left & ~is_massive).tolist()


def test_a_stream_of_a_model_leaves_special_tokens_out_and_a_bare_one_knows_none():
    made = stream(model(dtype=torch.float32), ["w5 w9 </s> w30 w44", "w7 w8 w9"] * 20, [RESID], context=16)
    shown = {name: getattr(made, name) for name in ("about", "special")}
    own = train(config(site=RESID, batch=16, tokens=64), made, progress=False, device="cpu")
    assert own.keep_rule.drop_tokens == tuple(shown["special"]) == (0, 1, 2) and own.keep_rule.drop_positions == 1
    assert own.metadata["rows"]["by_token"] > 0
    bare = train(config(batch=16, tokens=64), [rows_of()], progress=False, device="cpu")
    assert (bare.keep_rule.drop_tokens, bare.keep_rule.drop_positions) == ((), 0)


# Evaluation


def test_clipped_rows_count_in_reconstruction_as_training_saw_them_and_pass_through_the_model(tmp_path):
    shards = cached(tmp_path / "shards", count=30)
    x, later = shards[RESID][:], shards.positions > 0
    limit = float(x[later].norm(dim=1).quantile(0.8))
    keep = KeepRule(1, {RESID: limit}, (), "clip")
    own = dictionary(keep=keep.to_dict())
    metrics, dropping = (
        evaluate(dictionary(keep=one), shards) for one in (keep.to_dict(), {**keep.to_dict(), "massive": "drop"})
    )
    seen = keep.clip({RESID: x})[RESID][later]
    error, spread = (seen - own(seen)).square().sum(), (seen - seen.mean(0)).square().sum()
    assert metrics.fvu == pytest.approx(float(error / spread), rel=1e-9)
    assert metrics.l0 == pytest.approx(float(own.encode(seen).l0().double().mean()))
    assert metrics.dropped_share == pytest.approx(float((~later).double().mean()))
    assert metrics.dropped_share + 0.1 < dropping.dropped_share
    assert metrics.fvu_all == pytest.approx(
        float((x - own(x)).square().sum() / (x - x.mean(0)).square().sum()), rel=1e-9
    )
    assert dropping.fvu_all == pytest.approx(metrics.fvu_all) and dropping.fvu != pytest.approx(metrics.fvu)
    is_massive = int((later & (x.norm(dim=1) > limit)).sum())
    assert metrics.rows_by_rule == {"by_position": int((~later).sum()), "by_token": 0, "clipped": {RESID: is_massive}}
    assert dropping.rows_by_rule["by_norm"] == {RESID: is_massive} and is_massive > 10
    singular = torch.linalg.svdvals(seen - seen.mean(0)).square()
    assert metrics.linear_fvu == pytest.approx(float(singular[4:].sum() / singular.sum()), rel=1e-6)
    tokens, behind = shards.tokens[: int((shards.positions == 0).nonzero()[1])], {}
    hooks = [("blocks.2.hook_resid_pre", lambda value, hook: behind.update(y=value[0].clone()))]
    with torch.no_grad(), splice(model(), [own]):
        model().run_with_hooks(tokens[None], fwd_hooks=hooks)
    whole = x[: len(tokens)]
    untouched = torch.isclose(behind["y"], whole, rtol=1e-9, atol=1e-9).all(1)
    assert untouched.tolist() == ((torch.arange(len(tokens)) == 0) | (whole.norm(dim=1) > limit)).tolist()
