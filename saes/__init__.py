"""Sites, caching, Shards, dictionaries: from text to features.

    model  = load_model("smollm2-135m")
    shards = cache(model, bundled(), ["blocks.8.hook_resid_post"], "activations", tokens=100_000)
    sae    = train(TrainConfig(latents=4096, k=32, tokens=400_000), shards, "sae")
    print(evaluate(sae, shards, model).fvu)
    store  = collect(sae, shards, "features", model)

Importing this package costs little more than importing torch: transformer_lens and transformers are imported by
`load_model`, when a model is loaded.
"""

from .cache import cache
from .codes import Codes
from .config import DictionaryConfig, TrainConfig
from .corpus import Document, bundled, read_documents
from .dictionary import Dictionary
from .errors import UserError
from .evaluate import Metrics, evaluate
from .latents.collect import collect
from .latents.features import FeatureTable, features
from .latents.stats import FeatureStats
from .latents.store import Feature, FeatureStore
from .models import ModelInfo, load_model, model_info, to_tokens, token_strings
from .shards import Batch, Shards
from .sites import resolve_site
from .splice import splice
from .train import train

__all__ = [
    "Batch", "Codes", "Dictionary", "DictionaryConfig", "Document", "Feature", "FeatureStats", "FeatureStore",
    "FeatureTable", "Metrics", "ModelInfo", "Shards", "TrainConfig", "UserError", "bundled", "cache", "collect", "evaluate",
    "features", "load_model", "model_info", "read_documents", "resolve_site", "splice", "to_tokens", "token_strings", "train",
]  # fmt: skip
