"""Whether a live version shows any label: one word for console and command line."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hierarchy.calibration import Evidence
from inference.store import Project
from tests.inference.small import HEAD, head_of, publish, seen
from tests.published import TREE, project
from tests.published import publish as publish_without_evidence
from worker.parts import Parts
from worker.settings import Settings
from worker.showing import nothing_shown


@pytest.fixture
def parts(tmp_path: Path) -> Parts:
    return Parts(Settings(home=tmp_path))


@pytest.fixture
def known(parts: Parts) -> Project:
    return parts.store.register(project("http://studio:8080"))


def few() -> Evidence:
    """Six images, all right."""
    sure = np.linspace(0.95, 0.99, 6)
    return Evidence(np.column_stack([sure, sure]), np.ones((6, 2), dtype=np.int64))


def test_a_version_with_evidence_enough_shows_labels(parts: Parts, known: Project) -> None:
    version = publish(parts.store, known, TREE, head_of(TREE, HEAD), known=seen())
    assert nothing_shown(parts, known, version) is None


def test_a_version_of_few_images_says_how_many_more_it_needs(parts: Parts, known: Project) -> None:
    version = publish(parts.store, known, TREE, head_of(TREE, HEAD), known=few())
    told = nothing_shown(parts, known, version)
    assert told is not None
    assert (told.checked, told.wrong) == (6, 0)
    assert told.answers is not None
    assert "too little evidence; about" in told.words


def test_what_a_project_asks_for_counts_not_what_the_version_was_made_for(
    parts: Parts, known: Project
) -> None:
    version = publish(parts.store, known, TREE, head_of(TREE, HEAD), known=seen())
    bold = replace(known, target_accuracy=0.999)
    told = nothing_shown(parts, bold, version)
    assert told is not None
    assert told.target == 0.999
    modest = publish(parts.store, known, TREE, head_of(TREE, HEAD), known=few())
    assert nothing_shown(parts, replace(known, target_accuracy=0.6), modest) is None
    assert nothing_shown(parts, known, modest) is not None


def test_a_version_that_kept_no_evidence_shows_what_its_rule_says(
    parts: Parts, known: Project
) -> None:
    assert nothing_shown(parts, known, publish_without_evidence(parts.store, known)) is None
    version = publish_without_evidence(parts.store, known, price=None)
    told = nothing_shown(parts, known, version)
    assert told is not None
    assert told.answers is None
