"""Acquisition: diverse images before a model knows much, uncertain ones once it does.

`ask` is the whole; the rules it is mixed from, and those it was compared with, are here as well.
Pure numpy: the process that orders a project's tasks need not load a network library for it.
"""

from hierarchy.acquisition.diversity import typical
from hierarchy.acquisition.embedding import Space, cluster, twin_ranks
from hierarchy.acquisition.strategy import Asked, Reason, ask, varied_share
from hierarchy.acquisition.uncertainty import entropy, k_center, leaf_probabilities, margin

__all__ = [
    "Asked",
    "Reason",
    "Space",
    "ask",
    "cluster",
    "entropy",
    "k_center",
    "leaf_probabilities",
    "margin",
    "twin_ranks",
    "typical",
    "varied_share",
]
