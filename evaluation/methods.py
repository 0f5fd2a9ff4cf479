"""The methods by name: how each learns and how it is read, all behind the same backbone and trunk.

Ours goes through the product's own training. The others get the same maps, the same trunk, the same
loop and the same number of passes, so that only the method differs.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from evaluation.errors import ExperimentError
from evaluation.material import Material
from hierarchy import LabelTree
from hierarchy.network import Features, MapTrunk
from hierarchy.rivals.base import Rival
from hierarchy.rivals.losses import WithLoss
from hierarchy.rivals.published import Published
from hierarchy.rivals.registry import RIVALS
from worker import trainer
from worker.fitting import Rows, fit
from worker.recipe import Recipe

Floats = NDArray[np.float64]

#: HRN's blocks on reduced maps: F and the width before its classifiers, in the published proportion
#: of 2048 channels to F = 1024. The published sizes take 10 s a step on a CPU.
INNER, FEATURES = 128, 256

#: Pictures read at once.
BATCH = 256


@dataclass(frozen=True)
class Learnt:
    """A method after training.

    Attributes:
        log_probability: ``(n, N)`` for each judged set.
        seconds: of one CPU thread, for training alone.
    """

    log_probability: Mapping[str, Floats]
    seconds: float


Build = Callable[[LabelTree, int, Recipe], Rival[Any]]


def _on_trunk(name: str) -> Build:
    def build(tree: LabelTree, channels: int, recipe: Recipe) -> Rival[Any]:
        return RIVALS[name](tree, MapTrunk(channels, recipe.width, recipe.dropout), recipe.width)

    return build


def _with_loss(name: Any, **numbers: float) -> Build:  # noqa: ANN401 - checked by WithLoss
    def build(tree: LabelTree, channels: int, recipe: Recipe) -> Rival[Any]:
        trunk = MapTrunk(channels, recipe.width, recipe.dropout)
        return WithLoss(tree, trunk, recipe.width, name, **numbers)

    return build


def _published(**switches: Any) -> Build:  # noqa: ANN401 - the class names and checks them
    def build(tree: LabelTree, channels: int, recipe: Recipe) -> Rival[Any]:
        del recipe
        return Published(tree, channels, inner=INNER, features=FEATURES, **switches)

    return build


#: The paper's ablations: what its blocks, their sum and the ReLU add, and what each loss does.
ABLATIONS: Mapping[str, Build] = {
    "published, one block for all levels": _published(blocks="shared", combine=False, relu=False),
    "published, a block a level": _published(combine=False, relu=False),
    "published, + linear combination": _published(relu=False),
    "published, tree loss only": _published(parts="tree"),
    "published, leaf loss only": _published(parts="leaf"),
    "published, raw scores": _published(scores="raw"),
    "published, raw scores, read from the tree": _published(scores="raw", read="tree"),
    "published, raw, tree loss only, read from the tree": _published(
        scores="raw", parts="tree", read="tree"
    ),
}

#: Usual hierarchical losses on our trunk.
LOSSES: Mapping[str, Build] = {
    "level-ce": _with_loss("level-ce"),
    "soft": _with_loss("soft"),
    "hxe": _with_loss("hxe"),
}

OTHERS: Mapping[str, Build] = {
    "published": _published(),
    **{name: _on_trunk(name) for name in RIVALS},
    **LOSSES,
    **ABLATIONS,
}

#: Ours: the default, its spatial network alone (the trunk that the others have), and the one for
#: instant retraining.
OURS: Mapping[str, Callable[[Recipe], Recipe]] = {
    "hrn": lambda recipe: recipe,
    "hrn-single": lambda recipe: replace(recipe, pooled=0),
    "hrn-fast": lambda recipe: replace(Recipe.fast(), seed=recipe.seed),
}

#: What differs from our recipe for methods whose loss asks for it: many sigmoids, most of them
#: answered 0 in every picture, learn slowly. Chosen on Grocery's validation photos, nothing
#: relabelled, from rates of 0.001, 0.003 and 0.01, decays of 1, 0.1 and 0.01 and dropouts of 0.5
#: and 0.2.
SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "lmlp": {"rate": 3e-3, "decay": 0.1},
    "hmcn": {"rate": 1e-2, "decay": 0.01, "dropout": 0.2},
    "chmcnn": {"rate": 1e-2, "decay": 0.01, "dropout": 0.2},
}

METHODS: tuple[str, ...] = (*OURS, *OTHERS)


def learn(
    method: str,
    material: Material,
    targets: NDArray[np.int64],
    recipe: Recipe,
) -> Learnt:
    """Train a method on these targets and read it on every judged set.

    Args:
        method: one of ``METHODS``.
        material: maps and tree.
        targets: ``(P,)`` nodes after relabelling; one that changed has its poor maps where the
            material has such.
        recipe: views, trunk and loop; ``hrn`` also takes its members and fill-in from it.

    Raises:
        ExperimentError: there is no such method.
    """
    views = material.seen_at(targets != material.targets)
    rows = Rows(torch.arange(len(targets)), torch.from_numpy(targets), torch.ones(len(targets)))
    if method in OURS:
        return _ours(material, views, rows, OURS[method](recipe))
    if method in OTHERS:
        own = replace(recipe, **SETTINGS.get(method, {}))
        return _other(OTHERS[method], material, views, rows, own)
    raise ExperimentError(f"no method {method!r}: expected one of {', '.join(METHODS)}")


def _ours(material: Material, views: Sequence[Features], rows: Rows, recipe: Recipe) -> Learnt:
    started = time.thread_time()
    head = trainer.new_head(material.tree, material.reduction, recipe)
    chosen = views[: len(recipe.views)]
    trainer.learn(head, trainer.Lesson(material.tree, chosen, rows), recipe, lambda *_, **__: None)
    seconds = time.thread_time() - started
    read = {
        name: trainer.log_probabilities(head, material.tree, judged.seen)
        for name, judged in material.judged.items()
    }
    return Learnt(read, seconds)


def _other(
    build: Build, material: Material, views: Sequence[Features], rows: Rows, recipe: Recipe
) -> Learnt:
    started = time.thread_time()
    torch.manual_seed(recipe.seed)
    rival = build(material.tree, len(material.reduction.weight), recipe)
    for part in rival.modules():
        if isinstance(part, MapTrunk):
            part.seed(recipe.seed)

    def objective(features: Features, targets: Tensor, weights: Tensor) -> Tensor:
        del weights  # all alike
        outputs = rival(features.maps)
        return rival.loss(outputs, targets)

    fit(rival, objective, views, rows, recipe, lambda *_, **__: None)
    seconds = time.thread_time() - started
    read = {name: _read(rival, judged.seen.maps) for name, judged in material.judged.items()}
    return Learnt(read, seconds)


def _read(rival: nn.Module, maps: Tensor) -> Floats:
    assert isinstance(rival, Rival)  # noqa: S101 - what _other built
    with torch.inference_mode():
        parts = [
            rival.log_probability(rival(chunk.float())).double() for chunk in maps.split(BATCH)
        ]
    found: Floats = torch.cat(parts).numpy()
    return found
