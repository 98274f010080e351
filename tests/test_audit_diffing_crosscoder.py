"""Crosscoders on activations whose latents are known: exclusive, shared, shrunk and decoupled ones are called by their names."""

import saes_toys
import torch
from unweave.audit.diffing.crosscoder import CLASSES, compared, norm_difference
from unweave.saes import Dictionary, DictionaryConfig, TrainConfig, train
from unweave.saes.rows import held_out_rows

D, ROWS = 16, 4000
KINDS = ["shared", "only B", "shrunk", "decoupled", "decoupled", "only A"]


def sparse(rows, latents, seed=0):
    """Strengths that are zero three times out of four, independent of each other."""
    generator = torch.Generator().manual_seed(seed)
    fires = torch.rand(rows, latents, generator=generator) < 0.25
    return fires * (1 + torch.rand(rows, latents, generator=generator))


def planted(weak=0.5):
    """Activations of A and B, and the crosscoder that an L1 penalty would make of them: of each latent what its reading says in KINDS.

    Latents 0 … 5 read and write the unit directions 0, 1, 2, 3, 3, 4. The third is in A at `weak` times its strength, but its decoder for A
    is zero; latents 3 and 4 are one concept of both models, told apart by which of them they write.
    """
    f = sparse(ROWS, 5)
    x_a, x_b = torch.zeros(ROWS, D), torch.zeros(ROWS, D)
    x_a[:, [0, 2, 3, 4]] = f[:, [0, 2, 3, 4]] * torch.tensor([1.0, weak, 1.0, 1.0])
    x_b[:, [0, 1, 2, 3]] = f[:, [0, 1, 2, 3]]
    W_enc, W_dec = torch.zeros(6, 2 * D), torch.zeros(6, 2 * D)
    for latent, (read, in_a, in_b) in enumerate(
        [(D, 1, 1), (D + 1, 0, 1), (D + 2, 0, 1), (D + 3, 0, 1), (3, 1, 0), (4, 1, 0)]
    ):
        direction = read % D
        W_enc[latent, read] = 1.0
        W_dec[latent, direction], W_dec[latent, D + direction] = float(in_a), float(in_b)
    tensors = {"W_enc": W_enc, "b_enc": torch.zeros(6), "W_dec": W_dec, "b_dec": torch.zeros(2 * D)}
    config = DictionaryConfig(site=("a", "b"), activation="relu", latents=6, k=3)
    return {"a": x_a, "b": x_b}, Dictionary(config, tensors)


def named(columns):
    return [CLASSES[int(number)] for number in columns["class"]]


def test_norm_difference_runs_from_only_a_over_both_to_only_b():
    a, b = torch.tensor([1.0, 2.0, 0.0, 0.0]), torch.tensor([0.0, 2.0, 3.0, 0.0])
    assert norm_difference(a, b).tolist() == [0.0, 0.5, 1.0, 0.5]


def test_spurious_exclusive_latents_are_called_out(tmp_path):
    x, crosscoder = planted()
    shards = saes_toys.shards_of(tmp_path / "x", x)
    found = compared(crosscoder, shards, torch.ones(ROWS, dtype=torch.bool), 0, 0.05)
    assert named(found) == KINDS
    assert found["is_found"].tolist() == [False, True, False, False, False, True]
    # Closed forms: the error of A holds half of the third latent; latent 4 reconstructs in A what latent 3 does in B.
    torch.testing.assert_close(found["nu_eps"][2], torch.tensor(0.5, dtype=torch.float64), atol=1e-4, rtol=0)
    torch.testing.assert_close(found["nu_r"][3], torch.tensor(1.0, dtype=torch.float64), atol=1e-4, rtol=0)


def test_latent_scaling_is_the_least_squares_solution(tmp_path):
    x, crosscoder = planted(weak=0.3)
    shards = saes_toys.shards_of(tmp_path / "x", x)
    found = compared(crosscoder, shards, torch.ones(ROWS, dtype=torch.bool), 0, 0.05)
    codes = crosscoder.encode(x)
    f = codes.dense(6)[:, 2:3].double()
    error = x["a"].double() - (codes.dense(6).double() @ crosscoder.W_dec[:, :D].double())
    direction = torch.nn.functional.one_hot(torch.tensor(2), D).double()
    solved = torch.linalg.lstsq((f * direction).reshape(-1, 1), error.reshape(-1, 1)).solution
    torch.testing.assert_close(found["beta_eps_a"][2], solved[0, 0], atol=1e-5, rtol=0)


def test_what_is_barely_in_the_other_model_counts_as_exclusive(tmp_path):
    x, crosscoder = planted(weak=0.05)
    shards = saes_toys.shards_of(tmp_path / "x", x)
    found = compared(crosscoder, shards, torch.ones(ROWS, dtype=torch.bool), 0, 0.05)
    assert named(found)[2] == "only B"


def trained(folder, x, tokens=20_000):
    shards = saes_toys.shards_of(folder / "x", x)
    config = TrainConfig(
        site=("a", "b"), activation="batch_topk", latents=64, k=6, tokens=tokens, batch=256, lr=4e-3, held_out=0.3
    )
    return train(config, shards, progress=False), shards, held_out_rows(shards, 0.3)


def two_models(rows=8000, seed=0):
    """One known dictionary read by two models, and a direction that B writes on one token in twelve, of which A knows nothing."""
    x = saes_toys.Synthetic(24, 40, 3).batch(rows, seed)
    direction = torch.nn.functional.normalize(torch.randn(24, generator=torch.Generator().manual_seed(7)), dim=0)
    fires = torch.rand(rows, 1, generator=torch.Generator().manual_seed(8)) < 1 / 12
    return {"a": x, "b": x + 1.5 * fires * direction}, direction


def test_a_trained_crosscoder_ranks_what_b_alone_writes_first(tmp_path):
    x, direction = two_models()
    crosscoder, shards, rows = trained(tmp_path, x, tokens=80_000)
    found = compared(crosscoder, shards, rows, 0, 0.05)
    top = int(found["score"].argmax())
    assert named(found)[top] == "only B" and bool(found["is_found"][top]) and found["d_low"][top] > 0
    assert torch.cosine_similarity(crosscoder.W_dec[top, 24:], direction, dim=0) > 0.95


def test_the_same_activations_twice_give_no_discovery(tmp_path):
    x, _ = two_models()
    crosscoder, shards, rows = trained(tmp_path, {"a": x["a"], "b": x["a"]})
    found = compared(crosscoder, shards, rows, 0, 0.05)
    assert not bool(found["is_found"].any()) and set(named(found)) <= {"shared", "silent"}


def test_noise_that_is_alike_in_both_gives_no_discovery(tmp_path):
    x, _ = two_models()
    noisy = {
        side: x["a"] + 0.1 * torch.randn(x["a"].shape, generator=torch.Generator().manual_seed(seed))
        for seed, side in enumerate("ab")
    }
    crosscoder, shards, rows = trained(tmp_path, noisy)
    assert int(compared(crosscoder, shards, rows, 0, 0.05)["is_found"].sum()) <= 1


def test_models_of_different_widths_are_compared_by_their_decoders_lengths(tmp_path):
    x, _ = two_models()
    wider = torch.nn.functional.normalize(torch.randn(24, 32, generator=torch.Generator().manual_seed(3)), dim=1)
    crosscoder, shards, rows = trained(tmp_path, {"a": x["a"], "b": 3 * x["b"] @ wider}, tokens=80_000)
    found = compared(crosscoder, shards, rows, 0, 0.05)
    assert named(found)[int(found["score"].abs().argmax())] == "only B"
    assert bool(found["p"].isnan().all()) and not bool(found["is_found"].any())
