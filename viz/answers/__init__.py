"""Answers to the front end's questions, made from FeatureStores, Graphs and run folders. No model is needed.

| path | answer |
|---|---|
| `index` | title, what is open, numbers of the run, metrics of each run, what this host can do |
| `runs/R` | one training run: curves, config, evaluation |
| `stores/S` | what the store is, its columns, labels |
| `stores/S/columns/NAME` | one statistic of all latents |
| `stores/S/rows/ID,ID,…` | what the list shows of some latents |
| `stores/S/latents/J` | one feature card |
| `graphs/G` | one circuit |

R, S and G count from 0 in the order of the index. Strings leave here ready to be shown (text.py), numbers rounded to what a
reader can use, so that the front end only places them.
"""

from . import graphs, index, runs, stores  # noqa: F401  (each registers its paths)
from .frozen import frozen
from .registry import Answer, answer

__all__ = ["Answer", "answer", "frozen"]
