"""Two toy models that differ by a rank-one edit: B writes one known direction on one known token, in the MLP of block 1."""

import functools

import torch
import toys
from unweave.saes import Dictionary, DictionaryConfig, to_tokens

SITE, POST = "blocks.1.hook_resid_post", "blocks.1.mlp.hook_post"
TOKEN, RAISED = 5, 30  # the word w5 makes B write what raises w30
CONTEXT = 16


def texts(count=80, seed=1):
    """Texts of twenty to forty words out of twelve, of which w5 is one."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(20, 40, (count,), generator=generator).tolist()
    return [" ".join(f"w{i}" for i in torch.randint(3, 15, (n,), generator=generator).tolist()) for n in lengths]


@functools.cache
def base():
    """Model A."""
    return toys.boot("llama", dtype=torch.float32)


@functools.cache
def tuned(strength=8.0):
    """Model B: W_out of block 1 plus strength u v^T, v a least-squares reader of `the token is w5`."""
    model = toys.boot("llama", dtype=torch.float32)
    x, y = [], []
    for text in texts(40):
        ids = to_tokens(model, text)[None, :CONTEXT]
        _, seen = model.run_with_cache(ids, names_filter=[POST])
        x.append(seen[POST][0, 1:].double())
        y.append((ids[0, 1:] == TOKEN).double())
    X, Y = torch.cat(x), torch.cat(y)
    reader = torch.linalg.solve(X.T @ X + 1e-3 * torch.eye(X.shape[1]), X.T @ Y)
    weight = next(p for name, p in model.named_parameters() if "layers.1." in name and "down_proj" in name)
    with torch.no_grad():
        weight += strength * torch.outer(direction(), reader.float())
    return model


def direction():
    """The direction that B writes: the unembedding of w30."""
    return torch.nn.functional.normalize(base().unembed.W_U[:, RAISED], dim=0)


def dictionary(latents=40, threshold=2.5):
    """Latent 0 reads and writes the planted direction; the others are random directions across it."""
    u = direction()
    rows = torch.randn(latents, toys.WIDTH, generator=torch.Generator().manual_seed(0))
    rows -= (rows @ u)[:, None] * u
    rows[0] = u
    W = torch.nn.functional.normalize(rows, dim=1)
    tensors = {
        "W_enc": W.clone(),
        "b_enc": torch.full((latents,), -threshold),
        "W_dec": W,
        "b_dec": torch.zeros(toys.WIDTH),
    }
    config = DictionaryConfig(site=(SITE,), activation="relu", latents=latents, k=8)
    return Dictionary(config, tensors, {"keep": {"drop_positions": 1}})
