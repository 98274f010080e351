"""Tiny random language models of ten architectures, booted through TransformerLens without a model hub.

Three layers, width 64, four heads, 100 tokens; every weight, bias and norm weight is random, so that a term which a
test forgets shows. One model takes well under a second. `boot("llama")` is the usual entry; `ARCHITECTURES` lists the
names. The tokenizer knows the words w3 ... w99 and puts `<s>` (id 0) in front.
"""

import os
import warnings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")

import torch

VOCAB, WIDTH, LAYERS = 100, 64, 3


def tokenizer():
    """Word-level tokenizer over `w3 ... w99` with `<s>` = 0, `</s>` = 1, `<unk>` = 2."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<s>": 0, "</s>": 1, "<unk>": 2} | {f"w{i}": i for i in range(3, VOCAB)}
    core = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    special = dict(bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="</s>")
    wrapped = PreTrainedTokenizerFast(tokenizer_object=core, **special)
    # transformer_lens looks both keys up when it re-opens a tokenizer that was made in memory.
    wrapped.init_kwargs.update(name_or_path="", add_bos_token=True)
    return wrapped


def configs():
    """Architecture name -> function giving (config, model class) of transformers."""
    import transformers as tf

    ids = dict(bos_token_id=0, eos_token_id=1)
    rms = dict(
        vocab_size=VOCAB,
        hidden_size=WIDTH,
        intermediate_size=96,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        pad_token_id=1,
        **ids,
    )
    plain = dict(
        vocab_size=VOCAB,
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        max_position_embeddings=64,
        **ids,
    )
    local = dict(head_dim=16, sliding_window=4)
    gemma = dict(**local, query_pre_attn_scalar=16)
    capped = dict(**gemma, final_logit_softcapping=3.0, attn_logit_softcapping=5.0)
    phi = {name: value for name, value in rms.items() if name != "num_key_value_heads"}
    return {
        "gpt2": lambda: (
            tf.GPT2Config(vocab_size=VOCAB, n_embd=WIDTH, n_layer=LAYERS, n_head=4, n_positions=64, **ids),
            tf.GPT2LMHeadModel,
        ),
        "neox": lambda: (
            tf.GPTNeoXConfig(**plain, intermediate_size=128, rotary_pct=0.25, use_parallel_residual=True),
            tf.GPTNeoXForCausalLM,
        ),
        "llama": lambda: (tf.LlamaConfig(**rms), tf.LlamaForCausalLM),
        "qwen2": lambda: (tf.Qwen2Config(**rms), tf.Qwen2ForCausalLM),
        "qwen3": lambda: (tf.Qwen3Config(**rms, head_dim=16), tf.Qwen3ForCausalLM),
        "gemma2": lambda: (tf.Gemma2Config(**rms, **capped), tf.Gemma2ForCausalLM),
        "gemma3": lambda: (tf.Gemma3TextConfig(**rms, **gemma), tf.Gemma3ForCausalLM),
        "phi": lambda: (tf.PhiConfig(**phi), tf.PhiForCausalLM),
        "mistral": lambda: (tf.MistralConfig(**rms, **local), tf.MistralForCausalLM),
        "opt": lambda: (
            tf.OPTConfig(**plain, ffn_dim=128, word_embed_proj_dim=WIDTH, do_layer_norm_before=True, pad_token_id=1),
            tf.OPTForCausalLM,
        ),
        "granite": lambda: (
            tf.GraniteConfig(
                **rms, residual_multiplier=0.7, embedding_multiplier=3.0, attention_multiplier=0.3, logits_scaling=2.0
            ),
            tf.GraniteForCausalLM,
        ),
    }


# Granite multiplies each branch by a constant that no hook shows: what a tracer must notice, so it stands apart.
ARCHITECTURES = ("gpt2", "neox", "llama", "qwen2", "qwen3", "gemma2", "gemma3", "phi", "mistral", "opt")


def randomise(hf, name: str) -> None:
    """Fill every parameter; norm weights spread around 1 (Gemma adds the 1 itself)."""
    with torch.no_grad():
        for path, weight in hf.named_parameters():
            if weight.ndim == 1:
                is_gain = ("norm" in path or "ln_" in path) and path.endswith("weight") and "gemma" not in name
                weight.copy_(torch.randn_like(weight) * 0.3 + (1.0 if is_gain else 0.0))
            else:
                weight.copy_(torch.randn_like(weight) * (0.5 if weight.shape[0] == VOCAB else 0.15))


def hugging_face(name: str, *, seed: int = 0, dtype: torch.dtype = torch.float64):
    """The bare transformers model: eager attention, evaluation mode, no gradients."""
    torch.manual_seed(seed)
    config, kind = configs()[name]()
    config.architectures = [kind.__name__]  # transformer_lens cannot name gemma3_text from its model_type
    config._attn_implementation = "eager"
    hf = kind(config).eval()
    randomise(hf, name)
    return hf.to(dtype).requires_grad_(False)


def boot(name: str = "llama", *, seed: int = 0, dtype: torch.dtype = torch.float64):
    """A TransformerBridge on a tiny random model of the named architecture."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformer_lens.model_bridge import TransformerBridge

        hf = hugging_face(name, seed=seed, dtype=dtype)
        model = TransformerBridge.boot_transformers(
            f"{name}-tiny", hf_model=hf, tokenizer=tokenizer(), device="cpu", dtype=dtype
        )
    return model.eval().requires_grad_(False)


def prompt(length: int = 6, *, seed: int = 0) -> torch.Tensor:
    """Token ids [length]: `<s>` and then random words."""
    words = torch.randint(3, VOCAB, (length - 1,), generator=torch.Generator().manual_seed(seed))
    return torch.cat([torch.zeros(1, dtype=torch.int64), words])


def transcoder(
    layer: int = 1,
    *,
    latents: int = 80,
    k: int = 6,
    skip: bool = False,
    seed: int = 0,
    keep: dict | None = None,
    metadata: dict | None = None,
    dtype: torch.dtype = torch.float64,
):
    """A random TopK transcoder for the MLP of one layer of a toy; `keep` is the metadata of its exclusion rule."""
    from unweave.saes.dictionary import Dictionary
    from unweave.saes.dictionary_config import DictionaryConfig

    generator = torch.Generator().manual_seed(seed)
    shapes = {"W_enc": (latents, WIDTH), "b_enc": (latents,), "W_dec": (latents, WIDTH), "b_dec": (WIDTH,)}
    shapes |= {"W_skip": (WIDTH, WIDTH)} if skip else {}
    tensors = {name: torch.randn(shape, generator=generator, dtype=dtype) * 0.2 for name, shape in shapes.items()}
    config = DictionaryConfig(
        site=(f"blocks.{layer}.mlp.hook_in",),
        site_out=(f"blocks.{layer}.mlp.hook_out",),
        latents=latents,
        k=k,
        skip=skip,
    )
    return Dictionary(config, tensors, (metadata or {}) | {"keep": keep or {}})


def part(
    read: str,
    *writes: str,
    latents: int = 60,
    width: int = WIDTH,
    rule=None,
    skip: bool = False,
    seed: int = 0,
    **known,
):
    """A random Part in float64: an SAE without `writes`, else a (cross-layer) transcoder; every tensor is random."""
    from unweave.circuits.parts import Part, Rule

    generator = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64) * 0.2

    sites = writes or (read,)
    return Part(
        read,
        randn(latents, width),
        randn(latents),
        {site: randn(latents, width) for site in sites},
        {site: randn(width) for site in sites[:1]},
        rule or Rule("topk", k=5),
        randn(width, width) if skip else None,
        **known,
    )


def clt(layers: int = LAYERS, read: str = "mlp.hook_in", write: str = "mlp.hook_out", **known):
    """A random cross-layer transcoder: one Part a layer, each writing its own layer and all later ones."""
    return [
        part(f"blocks.{i}.{read}", *(f"blocks.{j}.{write}" for j in range(i, layers)), seed=10 + i, **known)
        for i in range(layers)
    ]
