"""What a person chooses is kept, told and refused with the reason."""

from dataclasses import replace

import pytest

from inference.errors import EarlierReleaseError, ModelError
from inference.store import Project
from tests.published import publish, publish_earlier
from worker.choosing import ChoiceError, check_depth, depth_preview, promote, rollback, set_depth
from worker.parts import Parts
from worker.queue import Board


def test_a_promoted_version_is_live_and_its_pre_labels_are_asked_for(
    parts: Parts, known: Project, board: Board
) -> None:
    publish(parts.store, known)
    publish(parts.store, known)
    promote(parts, known, "v1", pin=True)
    kept = parts.store.project(known.key)
    assert kept is not None
    assert (parts.store.current(known.key), kept.pinned) == ("v1", True)
    assert board.queue.job_ids == [f"refresh-{known.key}-v1"]


def test_promoting_keeps_what_was_set_since_the_project_was_read(
    parts: Parts, known: Project
) -> None:
    publish(parts.store, known)
    parts.store.save_project(replace(known, target_accuracy=0.8))
    promote(parts, known, "v1", pin=False)
    kept = parts.store.project(known.key)
    assert kept is not None
    assert kept.target_accuracy == 0.8


def test_going_back_stays_there_until_there_is_nothing_before(parts: Parts, known: Project) -> None:
    publish(parts.store, known)
    publish(parts.store, known)
    assert rollback(parts, known) == "v1"
    kept = parts.store.project(known.key)
    assert kept is not None
    assert kept.pinned
    with pytest.raises(ChoiceError, match="no other live version"):
        rollback(parts, known)


def test_what_an_earlier_release_trained_is_refused_in_words(parts: Parts, known: Project) -> None:
    publish_earlier(parts.store, known)
    publish(parts.store, known)
    told = "v1 was trained by an earlier release, .* a training is needed"
    with pytest.raises(ChoiceError, match=r"no other live version .* that this release can run"):
        rollback(parts, known)
    with pytest.raises(EarlierReleaseError, match=told):
        promote(parts, known, "v1", pin=False)
    kept = parts.store.project(known.key)
    assert kept is not None
    assert (parts.store.current(known.key), kept.pinned) == ("v2", False)


def test_a_damaged_version_is_not_promoted(parts: Parts, known: Project) -> None:
    publish(parts.store, known)
    publish(parts.store, known)
    weights = parts.settings.store / f"projects/{known.key}/versions/v1/weights.safetensors"
    weights.write_bytes(b"")
    with pytest.raises(ModelError, match="not those published"):
        promote(parts, known, "v1", pin=False)
    assert parts.store.current(known.key) == "v2"


@pytest.mark.parametrize(
    ("target", "minimum", "maximum"), [(0.0, 1, None), (1.0, 1, None), (None, 0, None), (0.9, 3, 2)]
)
def test_what_cannot_be_asked_for_is_refused(
    target: float | None, minimum: int, maximum: int | None
) -> None:
    with pytest.raises(ChoiceError, match=r"between 0 and 1|1 <= minimum"):
        check_depth(target, minimum, maximum)


def test_new_limits_are_kept_and_open_tasks_are_told(
    parts: Parts, known: Project, board: Board
) -> None:
    version = publish(parts.store, known)
    set_depth(parts, known)  # nothing new
    assert not board.moved(known.key, version, 0)
    set_depth(parts, replace(known, target_accuracy=0.8, maximum_depth=1))
    assert board.moved(known.key, version, 0)
    kept = parts.store.project(known.key)
    assert kept is not None
    assert (kept.target_accuracy, kept.maximum_depth) == (0.8, 1)
    with pytest.raises(ChoiceError):
        set_depth(parts, replace(known, target_accuracy=2))


def test_a_version_without_evidence_has_no_preview(parts: Parts, known: Project) -> None:
    assert depth_preview(parts, known) is None
    publish(parts.store, known)
    assert depth_preview(parts, known) is None
