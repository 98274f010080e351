"""Explanations of latents, and how right they are on documents that they were not made from.

found = label(FeatureStore.open("features"), number=50)          # without a language model
print(found)                                                    # beside the shuffled baseline

model = Endpoint("http://localhost:8000/v1", "some-model", cache="answers")
found = label(store, [3, 17], explainer=model)
"""

from .client import LanguageModel, LocalModel, Scripted
from .endpoint import Endpoint
from .labelling import label
from .result import Labelling
from .snippets import Draws

__all__ = ["Draws", "Endpoint", "Labelling", "LanguageModel", "LocalModel", "Scripted", "label"]
