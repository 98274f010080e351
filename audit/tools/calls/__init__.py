"""The tools. The order of these imports is the order in which they are listed."""

# isort: skip_file
from . import look_models, look_features, look_store, look_data, look_attribution
from . import act_chat, act_steer, act_probes
from . import compare_texts, compare_models, compare_replies, compare_labels
from . import conclude

__all__ = [
    "act_chat",
    "act_probes",
    "act_steer",
    "compare_labels",
    "compare_models",
    "compare_replies",
    "compare_texts",
    "conclude",
    "look_attribution",
    "look_data",
    "look_features",
    "look_models",
    "look_store",
]
