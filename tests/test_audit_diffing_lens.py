"""The lens on activations that are known: what documents agree on is found, what they do not is not, whatever token it reads as."""

import audit_diffing_toys as toy
import pytest
import saes_toys
import torch
import toys
from unweave.audit.diffing.lens import difference_lens, lens
from unweave.saes import UserError

DOCUMENTS, BLOCK = 40, 8


def shards(folder, signs, massive=0.0):
    """Random activations of A; B adds the direction of w30 times the sign of the document, at every token, and at one `massive` noise."""
    x = torch.randn(DOCUMENTS * BLOCK, toys.WIDTH, generator=torch.Generator().manual_seed(0))
    added = 0.3 * signs.repeat_interleave(BLOCK)[:, None] * toy.direction()
    added[2] += massive * torch.randn(toys.WIDTH, generator=torch.Generator().manual_seed(2))
    return saes_toys.shards_of(folder, {"a": x, "b": x + added}, block=BLOCK, document=BLOCK)


def test_a_difference_that_documents_agree_on_is_found(tmp_path):
    found = difference_lens(toy.base(), shards(tmp_path / "x", torch.ones(DOCUMENTS)))
    top = int(found["score"].argmax())
    assert found["token"][top] == toy.RAISED and bool(found["is_found"][top]) and found["q"][top] < 0.01


def test_a_difference_that_documents_do_not_agree_on_is_not(tmp_path):
    signs = torch.ones(DOCUMENTS)
    signs[: DOCUMENTS // 2 - 1] = -1
    found = difference_lens(toy.base(), shards(tmp_path / "x", signs))
    top = int(found["score"].argmax())
    assert found["token"][top] == toy.RAISED and found["p"][top] < 0.05  # it reads well, and is chance all the same
    assert not bool(found["is_found"].any())


def test_a_massive_activation_does_not_drown_the_others(tmp_path):
    found = difference_lens(toy.base(), shards(tmp_path / "x", torch.ones(DOCUMENTS), massive=200.0))
    at = found["position"] == 2
    assert found["token"][at][int(found["score"][at].argmax())] == toy.RAISED


def test_the_lens_is_the_final_norm_and_the_unembedding():
    x = torch.randn(3, toys.WIDTH, generator=torch.Generator().manual_seed(1))
    model = toy.base()
    logits = model.unembed(model.ln_final(x[None]))[0].double()
    torch.testing.assert_close(lens(model, x), logits - logits.mean(1, keepdim=True), atol=1e-4, rtol=1e-4)


def test_blocks_of_one_token_are_refused(tmp_path):
    x = torch.randn(6, toys.WIDTH)
    with pytest.raises(UserError, match="a few tokens"):
        difference_lens(toy.base(), saes_toys.shards_of(tmp_path / "x", {"a": x, "b": x}, block=1, document=1))
