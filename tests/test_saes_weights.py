"""What the weights alone say of a latent."""

import pytest
import torch
from saes_toys import MLP_IN, MLP_OUT, dictionary, model
from torch.testing import assert_close
from unweave.saes.latents.gather.weights import weight_arrays


def test_direct_effects_are_binned_and_described():
    own = dictionary(latents=7, k=2, dtype=torch.float32)
    arrays = weight_arrays(own, model())
    gain = model().ln_final.weight.float()
    effect = ((own.W_dec - own.W_dec.mean(1, keepdim=True)).double() * gain.double()) @ model().unembed.W_U.double()
    effect -= effect.mean(1, keepdim=True)
    assert_close(arrays["logit_range"], torch.stack(effect.aminmax(dim=1), 1).float(), rtol=1e-4, atol=1e-5)
    assert_close(arrays["logit_std"], effect.std(1, correction=0).float(), rtol=1e-4, atol=1e-5)
    kurtosis = effect.pow(4).mean(1) / effect.square().mean(1).square()
    assert_close(arrays["logit_kurtosis"], kurtosis.float(), rtol=1e-3, atol=1e-3)
    for latent in range(7):
        counts = torch.histc(effect[latent], 40)
        assert int(arrays["logit_histogram"][latent].sum()) == effect.shape[1]
        assert int((counts - arrays["logit_histogram"][latent]).abs().sum()) <= 2, "but for rounding at an edge"


def test_alignment_is_of_encoder_and_decoder():
    own = dictionary(latents=30, k=2)
    arrays = weight_arrays(own, model())
    for latent in (0, 29):
        enc, dec = own.W_enc[latent], own.W_dec[latent]
        assert arrays["encoder_cosine"][latent] == pytest.approx(float(enc @ dec / enc.norm() / dec.norm()), abs=1e-6)
        assert arrays["decoder_norm"][latent] == pytest.approx(float(dec.norm()), rel=1e-6)
    other = weight_arrays(dictionary(d=8, d_out=16, latents=5, site=MLP_IN, site_out=MLP_OUT), model())
    assert other["encoder_cosine"].isnan().all()
    assert "top_logit_tokens" not in other, "it writes at another width than the model's"


def test_neighbours_may_point_away_and_are_never_the_latent_itself():
    own = dictionary(latents=9, k=2, dtype=torch.float32)
    own.W_dec[1:4] = own.W_dec[0]
    own.W_dec[8] = -own.W_dec[0]
    own.W_dec[7] = 0
    arrays = weight_arrays(own, model())
    unit = torch.nn.functional.normalize(own.W_dec, dim=1)
    cosine = (unit @ unit.T).fill_diagonal_(-2)
    assert_close(arrays["neighbour_cosines"], cosine.sort(dim=1, descending=True).values[:, :8], rtol=1e-5, atol=1e-6)
    assert_close(arrays["neighbour_cosines"], cosine.gather(1, arrays["neighbours"].long()), rtol=1e-5, atol=1e-6)
    assert all(len(set(row)) == 8 for row in arrays["neighbours"].tolist())
    assert arrays["neighbour_cosines"].min() < -0.99


def test_a_latent_of_many_equal_ones_has_the_others_for_neighbours():
    own = dictionary(latents=14, k=2, dtype=torch.float32)
    own.W_dec[:12] = own.W_dec[0]
    near = weight_arrays(own, model())["neighbours"]
    for latent in range(12):
        assert set(near[latent].tolist()) <= set(range(12)) - {latent}
        assert len(set(near[latent].tolist())) == 8


def test_weights_that_are_not_numbers_are_shown_as_silent():
    own = dictionary(latents=5, k=2, dtype=torch.float32)
    own.W_dec[2, 3] = torch.nan
    arrays = weight_arrays(own, model())
    assert arrays["logit_histogram"].sum(1).tolist() == [model().cfg.d_vocab] * 5
    assert arrays["neighbour_cosines"].isfinite().all()
