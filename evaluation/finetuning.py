"""Training the backbone too, under the published protocols: whether HRN's levels pay there.

Four heads learn together with the network's backbone, each through the product's own loop
(`worker.tuning`) and of the same labels:

- ``hrn``: the product's head, a block per level.
- ``hrn, one block``: one block for all levels. Against it the levels show what they are worth.
- ``linear``: the mean of the map and one linear layer; what the blocks are worth.
- ``flat``: the same, a softmax over the leaves instead of the tree: the usual way to fine-tune a
  network, which learns nothing from coarse labels.

On a GPU all of it runs; on a CPU a few steps show that it would. B images, N nodes, C channels.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from evaluation.comparison import evidence_of, flat, shown_figures
from evaluation.data import Dataset, Split
from evaluation.errors import DatasetError
from evaluation.protocols import Degradation, Protocol
from evaluation.results import Row
from hierarchy import LabelTree
from hierarchy.baselines.losses import WithLoss
from hierarchy.heads import HRNHead
from hierarchy.metrics import evaluate
from inference.augmentation import prepare
from inference.backbone import Backbone
from studio.errors import ImageError
from studio.image_decoder import ImageLimits, decode
from worker.checkpoints import Checkpoints
from worker.fitting import Rows
from worker.photos import Pixels, Shelf, small, varied
from worker.tune_recipe import TuneRecipe
from worker.tuning import Aim, Lessons, Network, Tuned, Tuner, identity, predict, tree_aim

Build = Callable[[LabelTree, int, TuneRecipe], tuple[nn.Module, Aim]]

#: Images of a split that a trial of a few steps is judged on.
TRIAL_JUDGED: Final = 64

#: Position of a training image, and whether in its poor form.
Key = tuple[int, bool]


def _hrn(*, shared: bool) -> Build:
    def build(tree: LabelTree, channels: int, recipe: TuneRecipe) -> tuple[nn.Module, Aim]:
        sizes = {**recipe.sizes(), "shared": shared}
        head = HRNHead(
            tree, channels, dropout=recipe.dropout, delta=recipe.delta, seed=recipe.seed, **sizes
        )
        head.seed(recipe.seed)
        return head, tree_aim(tree)

    return build


def _linear(tree: LabelTree, channels: int, recipe: TuneRecipe) -> tuple[nn.Module, Aim]:
    del recipe
    return nn.Sequential(_pool(), nn.Linear(channels, len(tree))), tree_aim(tree)


def _flat(tree: LabelTree, channels: int, recipe: TuneRecipe) -> tuple[nn.Module, Aim]:
    del recipe
    head = WithLoss(tree, _pool(), channels, "flat")
    return head, Aim(lambda logits, targets, _: head.loss(logits, targets), head.log_probability)


def _pool() -> nn.Module:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())


HEADS: Mapping[str, Build] = MappingProxyType(
    {
        "hrn": _hrn(shared=False),
        "hrn, one block": _hrn(shared=True),
        "linear": _linear,
        "flat": _flat,
    }
)


@dataclass(frozen=True)
class Plan:
    """Settings that all runs of a comparison share.

    Attributes:
        dataset: the images.
        backbone: where each run starts from.
        recipe: a run brings its seed.
        device: ``cpu`` or ``cuda``.
        steps: after which a run stops that only tries things out; None for the whole recipe.
    """

    dataset: Dataset
    backbone: Backbone
    recipe: TuneRecipe
    device: str
    steps: int | None = None

    def judged(self, split: Split) -> Split:
        """Return the images to judge on: all, or some from all over the list in a trial."""
        if self.steps is None or len(split) <= TRIAL_JUDGED:
            return split
        return split.take(np.linspace(0, len(split) - 1, TRIAL_JUDGED).astype(np.int64))

    def settings(self) -> dict[str, Any]:
        """Describe what the runs share, for the file of results."""
        recipe = {name: value for name, value in self.recipe.to_json().items() if name != "seed"}
        return {
            "data": self.dataset.name,
            "backbone": self.backbone.fingerprint,
            "device": self.device,
            "recipe": recipe,
            "steps": self.steps,
        }


def shelf(dataset: Dataset, backbone: Backbone, folder: Path) -> Shelf[Key]:
    """Keep the training images, whole and poor, each read when it is first shown."""

    def make(key: Key) -> bytes:
        at, poor = key
        file = dataset.train.files[at]
        if not poor:
            return small(_read(file, 2 * backbone.preparation.resize), backbone.preparation)
        shrunk = Degradation(resolution=0.25).apply(_read(file, None), file.name)
        return small(shrunk, backbone.preparation)

    return Shelf(folder, make)


def tune(  # noqa: PLR0913 - one run, and what it shares with the others
    method: str,
    protocol: Protocol,
    seed: int,
    plan: Plan,
    images: Shelf[Key],
    say: Callable[..., None],
    saved_in: Path,
) -> Row:
    """Do one run: train, judge on val and test.

    Args:
        method: a head's name.
        protocol: which labels it gets.
        seed: of labels and training.
        plan: what it shares with the others.
        images: see `shelf`.
        say: told of progress as ``worker.fitting.Report``.
        saved_in: a folder for its checkpoints, from which it goes on if it was killed.

    Raises:
        FloatingPointError: the loss is not finite.
    """
    tree, train = plan.dataset.tree, plan.dataset.train
    recipe = replace(plan.recipe, seed=seed)
    chosen, targets = protocol.labels(train.targets, tree, seed)
    poor = (targets != train.targets[chosen]) & protocol.low_res
    torch.manual_seed(seed)
    head, aim = HEADS[method](tree, plan.backbone.channels, recipe)
    network = Network(plan.backbone, head)

    def show(at: int, draw: str) -> Pixels:
        key = int(chosen[at]), bool(poor[at])
        return varied(images[key], plan.backbone.preparation, draw)

    rows = Rows(torch.arange(len(targets)), torch.from_numpy(targets), torch.ones(len(targets)))
    facts = {"method": method, "protocol": asdict(protocol), "labels": _digest(plan, targets)}
    known = Checkpoints(saved_in, identity(network, recipe, plan.device, facts))
    tuner = Tuner(
        network,
        aim,
        Lessons(rows, show),
        recipe,
        device=plan.device,
        checkpoints=known if plan.steps is None else None,
    )
    tuned = tuner.run(say, limit=plan.steps)
    return Row(method, protocol.name, seed, _figures(network, aim, plan, tuned))


def _digest(plan: Plan, targets: NDArray[np.int64]) -> str:
    """Name the labels, so that a checkpoint of others is not taken up."""
    files = "\n".join(str(file) for file in plan.dataset.train.files)
    return hashlib.sha256(files.encode() + targets.tobytes()).hexdigest()


def _figures(network: Network, aim: Aim, plan: Plan, tuned: Tuned) -> dict[str, float]:
    """Return all figures of one run, by name."""
    figures = {
        "seconds": tuned.seconds,
        "steps": float(tuned.steps),
        "labels a second": tuned.labels_a_second,
    }
    if plan.device == "cuda":  # the most of all runs so far
        figures["GPU GB"] = torch.cuda.max_memory_allocated() / 1e9
    tree, found = plan.dataset.tree, {}
    for name, split in (("val", plan.dataset.val), ("test", plan.dataset.test)):
        judged = plan.judged(split)
        if len(judged):
            log_p = _log_probabilities(network, aim, plan, judged)
            prefix = "" if name == "test" else f"{name} "
            scores = flat(evaluate(log_p, judged.targets, tree))
            figures |= {f"{prefix}{figure}": value for figure, value in scores}
            found[name] = evidence_of(log_p, judged.targets, tree)
    return figures | (shown_figures(found["val"], found["test"]) if len(found) == 2 else {})


def _log_probabilities(network: Network, aim: Aim, plan: Plan, split: Split) -> NDArray[np.float64]:
    """``(n, N)`` of a split's images, prepared as served ones are."""
    preparation = plan.backbone.preparation

    def look(at: int) -> Pixels:
        return prepare(_read(split.files[at], 2 * preparation.resize), preparation)

    return predict(network, aim, look, range(len(split)), device=plan.device)


def _read(file: Path, at_least: int | None) -> Image.Image:
    try:
        return decode(file.read_bytes(), limits=ImageLimits(), at_least=at_least)
    except (OSError, ImageError) as error:
        raise DatasetError(f"{file}: {error}") from error
