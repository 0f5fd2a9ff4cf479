"""From labels to a dataset: every labelled image fetched, its feature vectors read."""

import hashlib
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from hierarchy.labels import padded
from inference.augmentation import LEARNT_FROM
from inference.feature_extractor import FeatureExtractor
from studio.errors import ImageError, ImageUnavailableError
from studio.json_fields import field_of
from worker.fitting import Report
from worker.snapshot import Snapshot, agreed
from worker.trainer import Examples

#: Share of labelled images that may be unreadable before a training is postponed.
MOST_MISSING = 0.25


@dataclass(frozen=True)
class Dataset:
    """Labelled images and their feature vectors.

    Attributes:
        examples: for the trainer.
        refs: address and task of each image, in the examples' order.
        marks: ``(P,)`` a number per image, by which versions remember what they learnt from.
        skipped: reasons for which images could not be used, counted.
        passing: how many of those may be read later.
    """

    examples: Examples
    refs: Sequence[tuple[str, int]]
    marks: NDArray[np.int64]
    skipped: dict[str, int]
    passing: int = 0

    @property
    def drawn(self) -> NDArray[np.bool_]:
        """``(P,)`` which images chance chose to be asked about."""
        none = np.zeros(self.examples.images, dtype=bool)
        return none if self.examples.drawn is None else self.examples.drawn

    def check_images(self, wanted: int) -> None:
        """Refuse a dataset that lacks many images: an outage must not look like few labels.

        Raises:
            ImageError: more than a quarter of the images could not be read, and never will be.
            ImageUnavailableError: some of them may be read later.
        """
        missing = sum(self.skipped.values())
        if missing > wanted * MOST_MISSING:
            reason = max(self.skipped, key=lambda reason: self.skipped[reason])
            kind = ImageUnavailableError if self.passing else ImageError
            raise kind(f"{missing} of {wanted} images could not be read, mostly: {reason}")

    def with_folds(self, folds: Mapping[int, int]) -> "Dataset":
        """Return the dataset with the folds of an earlier version, by each image's mark."""
        before = np.array([folds.get(mark, -1) for mark in self.marks.tolist()], dtype=np.int64)
        return replace(self, examples=replace(self.examples, before=before))


def build_dataset(  # noqa: PLR0913 - labels, where features come from, and what is known beside them
    snapshot: Snapshot,
    extractor: FeatureExtractor,
    group_field: str,
    progress: Report,
    augmentations: tuple[int, ...] = LEARNT_FROM,
    drawn: Collection[int] = (),
) -> Dataset:
    """Fetch every labelled image and read its feature vectors; skip what fails, with its reason.

    Args:
        snapshot: the labels.
        extractor: where features come from.
        group_field: of a task's data, says what is held out together; empty for none.
        progress: called per image.
        augmentations: those that are learnt from, the plain one first.
        drawn: tasks that chance chose to be asked about.
    """
    tasks = [task for task in snapshot.tasks if task.image is not None]
    items = [(str(task.image), task.task_id) for task in tasks]
    skipped, passing = Counter[str](), 0
    keys: dict[int, str] = {}
    for done, (position, result) in enumerate(extractor.ensure(items, augmentations)):
        if isinstance(result, ImageError):
            skipped[result.reason] += 1
            passing += isinstance(result, ImageUnavailableError)
        else:
            keys[position] = result
        progress("fetching images", done + 1, len(items))
    found = sorted(keys)
    tasks, refs = [tasks[i] for i in found], [items[i] for i in found]
    rows = [(at, label) for at, task in enumerate(tasks) for label in task.labels]
    vectors = np.empty((len(found), len(augmentations), extractor.channels), np.float16)
    for number, augmentation in enumerate(augmentations):
        image_keys = [keys[i] for i in found]
        vectors[:, number] = extractor.read(refs, image_keys, augmentation=augmentation)

    def group(data: Mapping[str, object]) -> str | None:
        value = field_of(data, group_field) if group_field else None
        return None if value is None else str(value)

    examples = Examples(
        vectors=vectors,
        image=np.array([at for at, _ in rows], dtype=np.int64),
        target=padded(label.nodes for _, label in rows),
        weight=np.array([1 / len(tasks[at].labels) for at, _ in rows], dtype=np.float32),
        truth=np.array([agreed(task, snapshot.tree) for task in tasks], dtype=np.int64),
        groups=[group(task.data) for task in tasks],
        drawn=np.array([task.task_id in drawn for task in tasks], dtype=bool),
    )
    marks = np.array([mark(ref) for ref, _ in refs], dtype=np.int64)
    return Dataset(examples, refs, marks, dict(skipped), passing)


def mark(ref: str) -> int:
    """Return a number for an image's address, stable between versions."""
    return int.from_bytes(hashlib.sha256(ref.encode()).digest()[:8], "big", signed=True)
