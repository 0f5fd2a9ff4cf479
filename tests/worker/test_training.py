"""A training that meets unreadable images, other leaves, or somebody else's project."""

import numpy as np
import pytest

from hierarchy import LabelTree
from inference.store import Project
from studio.errors import ImageError, ImageUnavailableError
from worker.dataset import Dataset
from worker.errors import MisconfiguredError
from worker.identity import check_same, is_ours
from worker.trainer import Examples
from worker.training import labels_by_node

EXAMPLES = Examples(
    vectors=np.empty((0, 1, 1), dtype=np.float16),
    image=np.empty(0, dtype=np.int64),
    target=np.empty(0, dtype=np.int64),
    weight=np.empty(0, dtype=np.float32),
    truth=np.empty(0, dtype=np.int64),
    groups=[],
)
PROJECT = Project("ls-1-1795440233", 1, "1.1795440233", "http://ls:8080", "<View/>")


def dataset(passing: int = 0, **skipped: int) -> Dataset:
    return Dataset(EXAMPLES, [], np.empty(0, dtype=np.int64), skipped, passing)


def test_an_outage_postpones_the_training() -> None:
    with pytest.raises(
        ImageUnavailableError, match="30 of 100 images could not be read, mostly: timeout"
    ):
        dataset(28, timeout=28, truncated=2).check_images(100)


def test_images_that_never_can_be_read_end_it_and_a_few_do_not() -> None:
    with pytest.raises(ImageError, match="mostly: truncated") as raised:
        dataset(truncated=30).check_images(100)
    assert not isinstance(raised.value, ImageUnavailableError)
    dataset(truncated=25).check_images(100)


def test_a_project_is_known_by_its_creation() -> None:
    check_same(PROJECT, {"created_at": "2026-11-23T13:23:53.513743Z"})
    with pytest.raises(MisconfiguredError, match=r"1\.1795440234"):
        check_same(PROJECT, {"created_at": "2026-11-23T13:23:54Z"})


def test_a_record_of_another_label_studio_is_not_ours() -> None:
    assert is_ours(PROJECT, "http://ls:8080/")
    assert not is_ours(PROJECT, "https://ls")


def test_labels_are_counted_at_the_node_they_name() -> None:
    """One of several counts for what is above all of them, or nowhere."""
    tree = LabelTree.from_paths([("Fruit", "Apple"), ("Fruit", "Pear"), ("Milk",)])
    fruit, apple, pear, milk = (
        tree.index(path) for path in (("Fruit",), ("Fruit", "Apple"), ("Fruit", "Pear"), ("Milk",))
    )
    rows = [[apple, -1], [apple, -1], [fruit, -1], [apple, pear], [pear, milk]]
    counts = labels_by_node(tree, np.array(rows))
    assert [counts[node] for node in (fruit, apple, pear, milk)] == [2, 2, 0, 0]
    assert labels_by_node(tree, np.array([apple, milk])).sum() == 2
