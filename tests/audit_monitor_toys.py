"""Texts and chats of the toys' words, and a chat template for their tokenizer."""

import saes_toys
import torch

TEMPLATE = "{% for m in messages %}w90 {{ m['role'] }} {{ m['content'] }} w91 {% endfor %}{% if add_generation_prompt %}w90 w92 {% endif %}"
SITE = saes_toys.RESID


def chat(*contents, roles=("user", "assistant")):
    return [{"role": roles[n % len(roles)], "content": content} for n, content in enumerate(contents)]


def words(first, last, count, seed, length=8):
    generator = torch.Generator().manual_seed(seed)
    return [" ".join(f"w{i}" for i in torch.randint(first, last, (length,), generator=generator)) for _ in range(count)]
