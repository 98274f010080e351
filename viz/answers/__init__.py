"""Answers to the front end's questions, made from FeatureStores, Graphs, Diffs, audits and run folders. No model is needed.

| path | answer |
|---|---|
| `index` | title, what is open, numbers of the run, metrics of each run, what this host can do |
| `overview` | a row of numbers for each store, Diff, audit and run |
| `runs/R` | one training run: curves, config, evaluation |
| `stores/S` | what the store is, its columns, labels |
| `stores/S/columns/NAME` | one statistic of all latents |
| `stores/S/rows/ID,ID,…` | what the list shows of some latents |
| `stores/S/marks` | which latents are labelled, starred, noted, tagged |
| `stores/S/latents/J` | one feature card |
| `stores/S/latents/J/intervals/KIND` | its examples by interval of the activation: width, count, log |
| `stores/S/latents/J/histogram` | its activations in bins of equal width |
| `stores/S/latents/J/company` | the latents that fire together with it |
| `graphs` | all circuits in numbers, and the features that recur |
| `graphs/figures/dashboard` | the same as a figure |
| `graphs/G` | one circuit |
| `graphs/G/drawn/N` | the same with N nodes in the picture |
| `graphs/G/labels` | what people call its latents |
| `graphs/G/view` | the view that was saved beside it |
| `graphs/G/nodes/I` | any of its nodes with its partners |
| `graphs/G/find/TEXT` | nodes by label, layer, token |
| `graphs/G/groups` | groups found among its features |
| `graphs/G/pinned/I,J-K,…` | the graph of pinned nodes and groups |
| `graphs/G/heads` | edges split over attention heads |
| `graphs/G/figures/NAME` | scores, paths, or the ledger of a target |
| `graphs/G/neuronpedia` | Neuronpedia's JSON |
| `diffs/D` | what changed between two models, all but the columns |
| `diffs/D/columns/NAME` | one column of all its rows |
| `audits/A` | an audit: findings with their evidence, a line for each call |
| `audits/A/calls/ID` | one call with its reply |

R, S, G, D and A count from 0 in the order of the index. Strings leave here ready to be shown (text.py), numbers rounded to what a
reader can use, so that the front end only places them.
"""

from . import (  # noqa: F401  (each registers its paths)
    audits,
    cards,
    compare,
    dashboard,
    diffs,
    graph_groups,
    graph_nodes,
    graph_tables,
    graphs,
    index,
    maps,
    overview,
    runs,
    stores,
)
from .frozen import frozen
from .registry import Answer, answer

__all__ = ["Answer", "answer", "frozen"]
