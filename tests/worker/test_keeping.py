"""Old versions go, those that somebody needs stay."""

from pathlib import Path

import pytest

from inference.store import ModelStore, Project
from tests.published import project, publish
from worker.choosing import prune_versions


@pytest.fixture
def known(tmp_path: Path) -> tuple[ModelStore, Project]:
    """A project with eight versions, of which the second is live and followed the first."""
    store = ModelStore(tmp_path)
    made = store.register(project("http://studio.example"))
    for _ in range(8):
        publish(store, made)
    return store, made


def test_the_oldest_go_and_the_newest_stay(known: tuple[ModelStore, Project]) -> None:
    store, made = known
    store.point(made.key, "v8", reason="test")
    gone = prune_versions(store, made.key, 3)
    ways_back = {store.manifest(made.key, "v8").parent, store.previous(made.key)}
    stay = {"v6", "v7", "v8", *ways_back} - {None}
    assert set(store.versions(made.key)) == stay
    assert gone == [f"v{n}" for n in range(1, 9) if f"v{n}" not in stay]
    assert prune_versions(store, made.key, 3) == []


def test_the_live_one_and_its_parent_stay(known: tuple[ModelStore, Project]) -> None:
    store, made = known
    store.point(made.key, "v2", reason="rollback")
    needed = {*store.needed(made.key), store.previous(made.key)} - {None}
    assert {"v2"} <= needed
    prune_versions(store, made.key, 2)
    assert set(store.versions(made.key)) == {"v7", "v8"} | needed
    assert store.weights(made.key, "v2")


def test_what_a_person_wrote_a_note_on_stays(known: tuple[ModelStore, Project]) -> None:
    store, made = known
    store.point(made.key, "v8", reason="test")
    store.write_note(made.key, "v3", "before the new camera")
    assert "v3" not in prune_versions(store, made.key, 2)
    assert "v3" in store.versions(made.key)


def test_none_go_where_all_are_kept_or_there_are_few(known: tuple[ModelStore, Project]) -> None:
    store, made = known
    assert prune_versions(store, made.key, 0) == []
    assert prune_versions(store, made.key, 8) == []
    assert len(store.versions(made.key)) == 8


def test_the_name_of_one_that_went_is_not_given_again(known: tuple[ModelStore, Project]) -> None:
    store, made = known
    store.point(made.key, "v8", reason="test")
    prune_versions(store, made.key, 2)
    assert publish(store, made) == "v9"


def test_nothing_goes_while_it_is_not_known_which_one_is_live(
    known: tuple[ModelStore, Project],
) -> None:
    store, made = known
    (pointer,) = store.root.rglob("current.json")
    pointer.unlink()
    assert prune_versions(store, made.key, 2) == []
