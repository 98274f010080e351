"""One rule, many users: whoever asks which tokens a dictionary answers for gets the same answer, a special token in mid-text included."""

import contextlib
from types import SimpleNamespace

import pytest
import torch
from saes_toys import RESID, dictionary, model
from unweave.circuits import expected_residual_attribution, parts, trace
from unweave.circuits.experiment.constrained import live, read_sites
from unweave.circuits.experiment.edits import Catalogue, Key
from unweave.circuits.experiment.removal import Removal
from unweave.circuits.parts import Part
from unweave.circuits.prompts.through import encode_prompt
from unweave.circuits.tracing.machine import build_machine
from unweave.saes import TrainConfig, UserError, cache, collect, evaluate, features
from unweave.saes.finetune import losses
from unweave.saes.judge import linear, probing, reconstruction
from unweave.saes.latents.effect.effect_runs import latent_values
from unweave.saes.rows import ShardRows
from unweave.saes.splice import replacing
from unweave.saes.text import Block, pad_blocks

LATER = "blocks.2.hook_resid_pre"
EOS = 1
TEXTS = [
    "w5 w9 </s> w30 </s> w42 w17 w88 w3",
    "w77 w41 w12 w60 w9 </s> w5",
    "w20 w21 w22 w23 w24 w25 w26 w27 w28 w29 w30",
    "</s> w31 w32 w90 w91 w92",
    "w51 w52 </s>",
]


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """Shards of texts with `</s>` in mid-text, and a dictionary with the rule that training fits there; its latent 0 fires everywhere."""
    folder = tmp_path_factory.mktemp("users")
    net = model()
    shards = cache(
        net, TEXTS, [RESID, LATER], folder / "shards", dtype=torch.float64, context=16, batch=2, progress=False
    )
    rows = ShardRows(TrainConfig(site=RESID, latents=24, k=4, held_out=0.0, drop_norm=1.05), shards)
    own = dictionary(
        keep={**rows.keep.to_dict(), "drop_tokens": [EOS]}
    )  # not 0, which padding has: it is no row in any case
    own.b_enc[:4] += 1e4
    firsts = (shards.positions == 0).nonzero().squeeze(1).tolist()
    blocks = [shards.tokens[a:b] for a, b in zip(firsts, [*firsts[1:], len(shards)], strict=True)]
    return SimpleNamespace(net=net, shards=shards, rows=rows, own=own, blocks=blocks, x=shards[RESID][:], folder=folder)


def expected(toy):
    """The definition, by hand."""
    norms, ids, positions = toy.x.norm(dim=1), toy.shards.tokens, toy.shards.positions
    left = (positions > 0) & (ids != EOS)
    return left & (norms <= 1.05 * float(norms[left].float().median()))


def where(toy, seen):
    """Which rows of the Shards are among the activations that somebody saw."""
    return (toy.x[:, None] == torch.cat(seen)[None]).all(2).any(1)


def watched(monkeypatch, owner, name, pick):
    """What `pick` makes of the arguments of every call of a function that goes on as before."""
    seen, original = [], getattr(owner, name)

    def spy(*args, **kwargs):
        seen.append(pick(*args, **kwargs))
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, spy)
    return seen


def later(net, padded, **changed):
    """Which tokens `replacing` changes of the stream behind it, and that it never changes padding."""
    seen = {}
    for name, context in {"clean": contextlib.nullcontext(), **changed}.items():
        with (
            torch.no_grad(),
            context,
            net.hooks(fwd_hooks=[(LATER, lambda x, hook, n=name: seen.update({n: x.clone()}))]),
        ):
            net(padded.tokens)
    moved = (seen["clean"] != seen["spliced"]).any(2)
    assert not moved[~padded.real].any()
    return moved[padded.real]


def by_training(toy, monkeypatch):
    kept = torch.zeros(len(toy.shards), dtype=torch.bool)
    kept[toy.rows.rows] = True
    return kept


def by_metrics(toy, monkeypatch):
    seen = watched(monkeypatch, reconstruction.SiteSums, "add", lambda self, y, y_hat, kept: y[kept])
    evaluate(toy.own, toy.shards)
    return where(toy, seen)


def by_linear_yardstick(toy, monkeypatch):
    seen = watched(monkeypatch, linear.Sums, "add", lambda self, x, y: x)
    evaluate(toy.own, toy.shards)
    return where(toy, seen)


def by_probes(toy, monkeypatch):
    seen = watched(monkeypatch, probing, "draw", lambda label, kept, *rest: kept)
    strings = {token: f" w{token}" for token in range(100)}
    with contextlib.suppress(UserError):  # too little text for a probe, which is drawn all the same
        probing.probe(toy.own, toy.shards, torch.ones(len(toy.shards), dtype=torch.bool), strings)
    return seen[0]


def by_splice(toy, monkeypatch):
    """By the way: what replaces everywhere replaces every token, but no padding."""
    padded = pad_blocks([Block(tokens, 0) for tokens in toy.blocks])
    ways = {
        way: replacing(toy.net, toy.own, lambda site, make, y: make(), way, real=padded.real) for way in (False, True)
    }
    assert later(toy.net, padded, spliced=ways[True]).all()
    return later(toy.net, padded, spliced=ways[False])


def by_cross_entropy(toy, monkeypatch):
    """Of the ways in which `evaluate` replaces, those that leave tokens out; `_all` replaces every token but no padding."""
    seen = []
    with toy.net.hooks(fwd_hooks=[(LATER, lambda x, hook: seen.append(x.clone()))]):
        evaluate(toy.own, toy.shards, toy.net, ce_tokens=10**6, batch=1)
    clean, reconstructed, zero, mean, everywhere, _ = (torch.cat([x[0] for x in seen[way::6]]) for way in range(6))
    order = torch.cdist(clean, toy.x).argmin(1)  # blocks come in random order
    assert (clean != everywhere).any(1).all()
    kept = [(clean != one).any(1) for one in (reconstructed, zero, mean)]
    assert kept[0].tolist() == kept[1].tolist() == kept[2].tolist()
    return torch.zeros(len(toy.x), dtype=torch.bool).scatter(0, order, kept[0])


def by_finetuning(toy, monkeypatch):
    padded = pad_blocks([Block(tokens, 0) for tokens in toy.blocks])
    seen = []
    with toy.net.hooks(fwd_hooks=[(LATER, lambda x, hook: seen.append(x.detach().clone()))]):
        losses(toy.own, toy.net, padded, 1.0)
    moved = (seen[0] != seen[1]).any(2)
    assert not moved[~padded.real].any()
    return moved[padded.real]


def by_statistics(toy, monkeypatch):
    store = collect(toy.own, toy.shards, toy.folder / "store", toy.net, progress=False)
    kept = torch.zeros(len(toy.shards), dtype=torch.bool)
    kept[store.codebook.firings(0).rows] = True
    assert store.manifest["kept_rows"] == int(kept.sum()) == int(store.count[0])
    return kept


def by_features(toy, monkeypatch):
    tables = [features(toy.net, toy.own, text, top=1) for text in TEXTS]
    return torch.tensor([row.is_kept for table in tables for row in table])


def by_effects(toy, monkeypatch):
    padded = pad_blocks([Block(tokens, 0) for tokens in toy.blocks])
    with torch.no_grad():
        seen = toy.net.run_with_cache(padded.tokens)[1][RESID]
    return latent_values(toy.own, 0, {RESID: seen}, padded)[padded.real] > 0


def by_tracing(toy, monkeypatch):
    kept = []
    for tokens in toy.blocks:
        machine = build_machine(toy.net, tokens, parts(toy.own))
        (cut,) = (cut for cut in machine.cuts.values() if cut.site == RESID)
        whole = (cut.error == machine.frozen.at[RESID]).all(1)
        whole[0] = True  # position 0 is a leaf of its own
        kept.append(~whole)
        assert (machine.sources[cut.writers[0]].values > 0).any(1).tolist() == kept[-1].tolist()
    return torch.cat(kept)


def by_experiments(toy, monkeypatch):
    catalogue, (part,) = Catalogue(toy.net, toy.own), parts(toy.own)
    return torch.cat([live(catalogue, part, read_sites(toy.net, tokens, [RESID]), tokens) for tokens in toy.blocks])


def by_prompts(toy, monkeypatch):
    catalogue, (part,) = Catalogue(toy.net, toy.own), parts(toy.own)
    return torch.cat([encode_prompt(catalogue, part, tokens)[1] for tokens in toy.blocks])


def by_virtual_weights(toy, monkeypatch):
    seen = watched(monkeypatch, Part, "encode", lambda self, x: x)
    after = dictionary(site="blocks.2.mlp.hook_in", site_out="blocks.2.mlp.hook_out", seed=1)
    batches = [
        batch._replace(activations={RESID: batch.activations[RESID], after.read: batch.activations[LATER]})
        for batch in toy.shards.batches(7, seed=None)
    ]
    expected_residual_attribution([toy.own, after], batches)
    return where(toy, seen)


USERS = [
    by_training, by_metrics, by_linear_yardstick, by_probes, by_splice, by_cross_entropy, by_finetuning, by_statistics, by_features,
    by_effects, by_tracing, by_experiments, by_prompts, by_virtual_weights,
]  # fmt: skip


@pytest.mark.parametrize("user", USERS, ids=lambda user: user.__name__)
def test_the_same_tokens_are_left_out_everywhere(toy, user, monkeypatch):
    ids, positions, kept = toy.shards.tokens, toy.shards.positions, expected(toy)
    is_special = (ids == EOS) & (positions > 0)
    assert is_special.sum() == 5 and 0 < ((positions > 0) & ~is_special & ~kept).sum() < 10
    assert user(toy, monkeypatch).tolist() == kept.tolist()


def test_a_latents_mean_activation_is_that_of_the_tokens_it_answers_for(toy):
    """What replaces it in `faithfulness`: a massive token's codes would be all of the mean."""
    tokens = toy.blocks[0]
    graph = trace(toy.net, tokens, toy.own, max_features=4)
    means = Removal(Catalogue(toy.net, toy.own), graph, tokens, [], True, True).means[Key("latent", RESID)]
    kept = expected(toy)[: len(tokens)]
    assert 0 < kept.sum() < len(tokens) - 1
    torch.testing.assert_close(means, toy.own.encode(toy.x[: len(tokens)][kept]).dense(24).mean(0))
