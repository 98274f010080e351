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
from .config import TrainConfig
from .corpus import Document, bundled, read_documents
from .dictionary import Dictionary
from .dictionary_config import DictionaryConfig
from .errors import UserError
from .evaluate import Metrics, evaluate
from .finetune import finetune
from .joined import join_shards
from .latents.across.maps import map_layout, write_map
from .latents.across.matching import Matching, match_activations, match_decoders
from .latents.codes.codebook import Codebook
from .latents.codes.company import Companion, company
from .latents.codes.intervals import Interval, intervals
from .latents.codes.occurrences import Occurrences, occurrences
from .latents.effect.effects import Effect, effects
from .latents.features import FeatureTable, features
from .latents.find.search import Found, rank_firing, search
from .latents.gather.collect import collect
from .latents.gather.stats import FeatureStats
from .latents.said.labels import Labels
from .latents.said.mark import Mark
from .latents.shelf.store import Feature, FeatureStore
from .models import ModelInfo, load_model, model_info, to_tokens, token_strings
from .shards.folder import Batch, Shards
from .sites import resolve_site
from .splice import splice
from .streamed import stream
from .sweep import grid, train_many
from .train import train

__all__ = [
    "Batch",
    "Codebook",
    "Codes",
    "Companion",
    "Dictionary",
    "DictionaryConfig",
    "Document",
    "Effect",
    "Feature",
    "FeatureStats",
    "FeatureStore",
    "FeatureTable",
    "Found",
    "Interval",
    "Labels",
    "Mark",
    "Matching",
    "Metrics",
    "ModelInfo",
    "Occurrences",
    "Shards",
    "TrainConfig",
    "UserError",
    "bundled",
    "cache",
    "collect",
    "company",
    "effects",
    "evaluate",
    "features",
    "finetune",
    "grid",
    "intervals",
    "join_shards",
    "load_model",
    "map_layout",
    "match_activations",
    "match_decoders",
    "model_info",
    "occurrences",
    "rank_firing",
    "read_documents",
    "resolve_site",
    "search",
    "splice",
    "stream",
    "to_tokens",
    "token_strings",
    "train",
    "train_many",
    "write_map",
]  # fmt: skip
