"""Which pictures to ask about next: variety before a model knows much, doubt once it does.

`ask` is the whole; the rules it is mixed from, and those it was compared with, are here as well.
Pure numpy: the process that orders a project's tasks need not load a network library for it.
"""

from hierarchy.acquisition.asking import Asked, Reason, ask, varied_share
from hierarchy.acquisition.doubt import entropy, k_center, leaf_probabilities, margin
from hierarchy.acquisition.space import Space, cluster, twin_ranks
from hierarchy.acquisition.variety import typical

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
