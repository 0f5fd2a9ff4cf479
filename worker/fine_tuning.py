"""Training the backbone too: one network and an HRN head on images, not on cached features.

Some of the labelled images are held out, the rest is learnt from (`worker.tuning`), and what is
held out calibrates and judges. Meant for a GPU; on a CPU it works and takes long.
"""

import hashlib
import logging
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hierarchy import LabelTree
from hierarchy.calibration import fit_rule
from inference.backbone import Backbone
from inference.extractors import tuned_fingerprint
from inference.manifest import KIND
from studio.errors import ImageError
from worker import checkpoints, trainer
from worker.checkpoints import Checkpoints
from worker.dataset import Dataset
from worker.fitting import Report
from worker.parts import Parts
from worker.photos import Pixels, Shelf, from_plain, plain, prefetched, small, varied
from worker.settings import Settings
from worker.together import Task, processes_for, train_together
from worker.trainer import Candidate, RuleSettings
from worker.tune_recipe import TuneRecipe
from worker.tuning import (
    Aim,
    Lessons,
    Network,
    Tuner,
    identity,
    predict,
    tree_aim,
    tuned_head,
)

log = logging.getLogger(__name__)

#: Images fetched and decoded at once, before training.
FETCHERS = 8


def wanted(asked: bool | None, settings: Settings) -> bool:  # noqa: FBT001 - yes, no or not said
    """Return what was asked for, else the server's setting: ``auto`` is yes on a GPU."""
    if asked is not None:
        return asked
    if settings.fine_tune == "auto":
        return device_of(settings) == "cuda"
    return settings.fine_tune == "on"


def device_of(settings: Settings) -> str:
    """Return ``cuda`` where there is one and it is not forbidden, else ``cpu``."""
    return "cuda" if settings.device != "cpu" and torch.cuda.is_available() else "cpu"


def fit(  # noqa: PLR0913 - the head alone takes the same, but for the recipe
    tree: LabelTree,
    dataset: Dataset,
    parts: Parts,
    key: str,
    rule: RuleSettings,
    progress: Report,
    recipe: TuneRecipe | None = None,
) -> Candidate:
    """Fine-tune on all images but one part, which calibrates and judges.

    A run that was killed goes on where it was, if labels, images and settings are the same; see
    `forget`.

    Args:
        tree: of the labels' nodes.
        dataset: labelled images; their vectors decide which are held out together and how the head
            standardises what it reads.
        parts: backbone and images come from here.
        key: the project's, for its checkpoints.
        rule: what the project chose of its depth rule.
        progress: called at every step; may raise to stop.
        recipe: the settings; None for those that suit the device.

    Raises:
        TooFewLabelsError: as for the head alone, or all images are one group.
        FloatingPointError: the loss is not finite.
    """
    examples = dataset.examples
    trainer.check_enough(examples.images, examples.named)
    device = device_of(parts.settings)
    recipe = recipe or TuneRecipe.for_device(device)
    base = parts.extractors.backbone()
    folds = trainer.deal(examples, recipe)
    held = folds == 0
    with _shelf(dataset, held, parts, base) as shelf:
        there = _filled(shelf, dataset, progress)
        learn = (there & ~held)[examples.image]
        if learn.sum() < 2:
            raise trainer.TooFewLabelsError(
                "all labelled images are one group, so none can be held out: label images of "
                "another group, or choose another HRN_GROUP_FIELD"
            )
        head = tuned_head(tree, base.channels, recipe)
        # The last network's vectors are those of the backbone before it is trained further.
        vectors = torch.from_numpy(examples.plain[:, -base.channels :]).float()
        head.set_standardisation(vectors.mean(dim=0), vectors.std(dim=0, correction=0))
        network, aim = Network(base, head), tree_aim(tree)
        facts = _facts(tree, dataset, learn, base)
        folder = _folder(parts.settings) / key
        name, rows = identity(network, recipe, device, facts), examples.rows(learn)
        count = processes_for(device, len(rows), recipe)
        if count > 1:
            source, file = parts.settings.networks[-1]
            weights = None if file is None else str(file)
            trees, recipes = tree.to_json(), recipe.to_json()
            task = Task(source, weights, recipes, trees, str(folder), name)
            room = parts.settings.cache / "tuning"
            train_together(
                task, network, rows, shelf.__getitem__, progress, processes=count, room=room
            )
            network.to(device)
        else:

            def show(image: int, draw: str) -> Pixels:
                return varied(shelf[image], base.preparation, draw)

            saved = Checkpoints(folder, name)
            lessons = Lessons(rows, show)
            tuner = Tuner(network, aim, lessons, recipe, device=device, checkpoints=saved)
            tuner.run(progress)
        held_out = _held_out(network, aim, shelf, held & there, base, len(tree), device)
    judged = trainer.judge(tree, examples, held_out)
    fitted = fit_rule(judged.seen, **rule)
    module = network.cpu().backbone.module
    return Candidate(
        trainer.Trained(head.eval(), fitted, judged, held_out, folds),
        {"kind": KIND, "channels": base.channels, **recipe.sizes()},
        {"name": base.name, "fingerprint": tuned_fingerprint(base, module)},
        recipe.to_json(),
        dict(module.state_dict()),
    )


def forget(settings: Settings, key: str) -> None:
    """Remove a project's checkpoints, once what came of them is published; and anybody's old ones.

    Args:
        settings: say where they are.
        key: the project's.
    """
    checkpoints.remove(_folder(settings) / key)
    checkpoints.prune(_folder(settings))


def _folder(settings: Settings) -> Path:
    """Return the folder of checkpoints: not in the store, which may be a bucket, nor the cache."""
    return settings.home / "tuning"


def _shelf(dataset: Dataset, held: NDArray[np.bool_], parts: Parts, base: Backbone) -> Shelf[int]:
    """Open the labelled images: those held out as they are served, the others to be varied."""

    def make(at: int) -> bytes:
        ref, task = dataset.refs[at]
        file = parts.fetcher.fetch(ref, task_id=task)
        # Twice the size we need, as for features that are served.
        enough = 2 * base.preparation.resize
        image = parts.decoders.decode(file.data, limits=parts.limits, at_least=enough)
        return (plain if held[at] else small)(image, base.preparation)

    return Shelf(parts.settings.cache / "tuning", make)


def _filled(shelf: Shelf[int], dataset: Dataset, progress: Report) -> NDArray[np.bool_]:
    """Return ``(P,)`` which images are there: some may have vanished since they were cached."""
    count = len(dataset.refs)

    def fetch(at: int) -> str:
        try:
            shelf[at]
        except ImageError as error:
            return error.reason
        return ""

    there = np.ones(count, dtype=bool)
    with closing(prefetched(range(count), fetch, threads=FETCHERS, ahead=64)) as found:
        for at, reason in enumerate(found):
            if reason:
                log.warning("left out task=%d: %s", dataset.refs[at][1], reason)
                there[at] = False
            progress("decoding", at + 1, count)
    return there


def _facts(
    tree: LabelTree, dataset: Dataset, learn: NDArray[np.bool_], base: Backbone
) -> Mapping[str, Any]:
    """Return what is learnt from, in plain data: the labels as training sees them."""
    examples, seen = dataset.examples, hashlib.sha256()
    for row in np.flatnonzero(learn).tolist():
        ref, target = dataset.refs[examples.image[row]][0], examples.target[row].tolist()
        seen.update(repr((ref, target, float(examples.weight[row]))).encode())
    return {"tree": tree.to_json(), "backbone": base.fingerprint, "labels": seen.hexdigest()}


def _held_out(  # noqa: PLR0913 - the network, and what to show it
    network: Network,
    aim: Aim,
    shelf: Shelf[int],
    which: NDArray[np.bool_],
    base: Backbone,
    nodes: int,
    device: str,
) -> NDArray[np.float64]:
    """Return ``(P, N)`` log-probabilities of images held out, NaN rows for the others."""
    log_p = np.full((len(which), nodes), np.nan)
    if which.any():

        def show(at: int) -> Pixels:
            return from_plain(shelf[at], base.preparation)

        log_p[which] = predict(network, aim, show, np.flatnonzero(which).tolist(), device=device)
    return log_p
