"""A backbone that was trained along comes back from the store as it left; features and gate too."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from models.answers import maps_of
from models.predictor import load_predictor
from models.store import Project
from studio.annotations import Label, TaskLabels
from studio.labelconfig import LabelConfig, parse_label_config
from tests.models.small import NAME, png, weights_file
from tests.studio.configs import taxonomy_xml, tree_of
from worker import fine_tuning, making, trainer, training
from worker.fine_tuning import TuneRecipe, wanted
from worker.gathering import Gathered, gather, mark
from worker.order import Order
from worker.parts import Parts
from worker.recipe import Recipe
from worker.settings import Settings
from worker.snapshot import Snapshot, take
from worker.training import learn

CONFIG: LabelConfig = parse_label_config(
    taxonomy_xml(tree_of([("Fruit", "Apple"), ("Fruit", "Pear"), ("Milk",)]))
)
TREE = CONFIG.tree

#: The rate is high, so that two epochs of three steps make a difference.
TINY = TuneRecipe(inner=8, features=8, epochs=2, batch=4, rate=0.3, folds=3)

ORDER = Order("somewhere-1-17", fine_tune=False)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Networks this small wait for each other's threads longer than they compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    """The real parts; pictures lie in a folder as Label Studio's local files."""
    home = tmp_path_factory.mktemp("home")
    (home / "pictures").mkdir()
    for seed in range(24):
        (home / "pictures" / f"{seed}.png").write_bytes(png(seed))
    return Parts(
        Settings(
            home=home,
            device="cpu",
            backbone=NAME,
            backbone_weights=weights_file(home),
            local_files=home / "pictures",
        )
    )


def owner(parts: Parts, key: str = ORDER.project, **more: Any) -> Project:
    return parts.store.register(Project(key, 1, "1.17", "http://somewhere", "<View/>", **more))


def silent(stage: str, done: int, total: int, **figures: float) -> None:
    """Nobody listens."""


def task(number: int, target: int, *, picture: str = "", session: str = "") -> TaskLabels:
    when = f"2026-01-{number + 1:02}"
    label = Label(number, number, target, (target,), 7, when, False, None, None)  # noqa: FBT003
    address = picture or f"/data/local-files/?d={number}.png"
    return TaskLabels(number, address, (label,), (), {"session": session} if session else {})


def labelled(count: int, start: int = 0) -> Snapshot:
    leaves = TREE.leaves
    return take([task(at, leaves[at % len(leaves)]) for at in range(start, start + count)], TREE)


@pytest.fixture(scope="module")
def twelve(parts: Parts) -> Gathered:
    return gather(labelled(12), parts.galleries.base(), "", silent)


# Features


def test_every_label_is_gathered_with_its_picture(twelve: Gathered) -> None:
    examples = twelve.examples
    assert (examples.pictures, len(twelve.refs), twelve.skipped) == (12, 12, {})
    assert examples.picture.tolist() == list(range(12))
    assert examples.truth.tolist() == examples.target.tolist()
    assert len(set(twelve.marks.tolist())) == 12
    assert twelve.newest[3] == "2026-01-04"


def test_features_are_read_at_any_positions_either_way(twelve: Gathered, parts: Parts) -> None:
    gallery = parts.galleries.base()
    for mirrored in (False, True):
        found = twelve.examples.read([7, 2], mirrored)
        expected = maps_of(gallery, [twelve.refs[7], twelve.refs[2]], mirrored=mirrored)
        np.testing.assert_array_equal(found, expected)


def test_pictures_that_cannot_be_had_are_counted_and_left_out(parts: Parts) -> None:
    tasks = [task(0, 1), task(1, 2, picture="/data/local-files/?d=gone.png"), task(2, 3)]
    found = gather(take(tasks, TREE), parts.galleries.base(), "", silent)
    assert found.examples.pictures == 2
    assert found.examples.picture.tolist() == [0, 1]
    assert found.examples.target.tolist() == [1, 3]
    assert sum(found.skipped.values()) == 1


def test_nothing_to_be_had_is_too_little_to_train(parts: Parts) -> None:
    found = gather(take([], TREE), parts.galleries.base(), "", silent)
    assert found.examples.pictures == 0
    with pytest.raises(trainer.TooFewLabelsError, match="got 0 pictures"):
        trainer.check_enough(found.examples.pictures, set(found.examples.target.tolist()))


def test_annotators_share_a_picture_and_groups_come_from_the_task(parts: Parts) -> None:
    both = task(0, 1, session="monday")
    both = replace(both, labels=(*both.labels, replace(both.labels[0], annotation_id=9, target=2)))
    found = gather(take([both, task(1, 2)], TREE), parts.galleries.base(), "session", silent)
    assert found.examples.picture.tolist() == [0, 0, 1]
    assert found.examples.weight.tolist() == [0.5, 0.5, 1]
    assert list(found.examples.groups) == ["monday", None]


# The backbone too


def test_what_was_fine_tuned_comes_back_from_the_store(parts: Parts, twelve: Gathered) -> None:
    """Two epochs on twelve pictures: the served log-probabilities are those of training."""
    project = owner(parts)
    made = fine_tuning.fit(TREE, twelve, parts, project, silent, TINY)
    base = parts.galleries.backbone()
    assert any(
        not torch.equal(made.backbone_weights[name], value)
        for name, value in base.module.state_dict().items()
    )
    judged = np.flatnonzero(~np.isnan(made.trained.held_out[:, 0]))
    assert 2 <= len(judged) <= 6
    version = parts.store.publish(
        project.key,
        {
            "tree": TREE.to_json(),
            "network": made.network,
            "backbone": made.backbone,
            "calibration": made.trained.fitted.to_json(),
        },
        training._tensors(twelve, made),
    )
    predictor = load_predictor(parts.store, project, version)
    gallery = parts.galleries.of(predictor)
    maps = maps_of(gallery, [twelve.refs[at] for at in judged.tolist()], mirrored=False)
    served = predictor.log_probabilities(maps)
    np.testing.assert_allclose(served, made.trained.held_out[judged], atol=0.1)
    assert np.ptp(served, axis=0).max() > 0.2  # and they tell pictures apart


def test_fine_tuning_reports_forward_and_can_be_stopped(parts: Parts, twelve: Gathered) -> None:
    shares: list[float] = []

    def report(stage: str, done: int, total: int, **figures: float) -> None:
        if stage == "fine-tuning":
            shares.append(done / total)
            if "loss" in figures:
                raise InterruptedError

    with pytest.raises(InterruptedError):
        fine_tuning.fit(TREE, twelve, parts, owner(parts), report, TINY)
    assert shares == sorted(shares)
    assert shares[-1] == 0.5  # one epoch of two


def test_one_group_cannot_be_fine_tuned(parts: Parts, twelve: Gathered) -> None:
    grouped = replace(twelve, examples=replace(twelve.examples, groups=["a"] * 12))
    with pytest.raises(trainer.TooFewLabelsError, match="one group"):
        fine_tuning.fit(TREE, grouped, parts, owner(parts), silent, TINY)


def test_the_same_seed_tunes_the_same_backbone(parts: Parts, twelve: Gathered) -> None:
    marks = {
        fine_tuning.fit(TREE, twelve, parts, owner(parts), silent, TINY).backbone["fingerprint"]
        for _ in range(2)
    }
    assert len(marks) == 1
    assert marks != {parts.galleries.backbone().fingerprint}


@pytest.mark.parametrize(
    ("asked", "setting", "expected"),
    [(True, "off", True), (False, "on", False), (None, "on", True), (None, "off", False)],
)
def test_what_is_asked_for_beats_the_setting(
    asked: bool | None,  # noqa: FBT001
    setting: Any,
    expected: bool,  # noqa: FBT001
) -> None:
    assert wanted(asked, Settings(fine_tune=setting)) is expected


def test_without_a_gpu_auto_is_no() -> None:
    assert not wanted(None, Settings(fine_tune="auto", device="cpu"))


# The whole run, and its gate


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A head of few weights and steps; what surrounds it is as it is."""
    small = Recipe(reduced=8, width=8, projection=8, epochs=2, least_steps=20, folds=3)
    monkeypatch.setattr(making, "Recipe", lambda: small)


@pytest.mark.usefixtures("quick")
def test_a_version_is_learnt_published_and_compared(parts: Parts) -> None:
    """First version; the same labels; more labels, judged on what the first had not seen."""
    project = owner(parts, "gate-1-17")
    order = Order(project.key, fine_tune=False)
    first = learn(order, project, CONFIG, labelled(12), parts, silent)
    assert (first.state, first.version) == ("published", "v1")
    assert parts.store.manifest(project.key, "v1")["gate"]["why"] == "the first version"
    again = learn(order, project, CONFIG, labelled(12), parts, silent)
    assert (again.state, again.version) == ("nothing new", None)
    second = learn(order, project, CONFIG, labelled(24), parts, silent)
    assert "on 12 pictures labelled since v1" in second.why
    few = learn(replace(order, force=True), project, CONFIG, labelled(24), parts, silent)
    assert "held-out leaf accuracy" in few.why


@pytest.mark.usefixtures("quick")
def test_a_live_version_that_cannot_be_loaded_does_not_stand_in_the_way(parts: Parts) -> None:
    project = owner(parts, "broken-1-17")
    order = Order(project.key, fine_tune=False)
    learn(order, project, CONFIG, labelled(12), parts, silent)
    file = parts.store.root / "projects" / project.key / "versions" / "v1" / "weights.safetensors"
    file.write_bytes(b"")
    ended = learn(order, project, CONFIG, labelled(13), parts, silent)
    assert ended.state == "published"
    assert "v1 cannot be compared with" in ended.why
    assert parts.store.current(project.key) == "v2"


@pytest.mark.usefixtures("quick")
def test_a_version_chosen_by_hand_stays_live(parts: Parts) -> None:
    project = owner(parts, "pinned-1-17")
    order = Order(project.key, fine_tune=False)
    learn(order, project, CONFIG, labelled(12), parts, silent)
    parts.store.save_project(replace(project, pinned=True))  # as a rollback during the training
    ended = learn(order, project, CONFIG, labelled(24), parts, silent)
    assert ended.state in {"kept back", "refused"}
    assert parts.store.versions(project.key) == ["v1", "v2"]
    assert parts.store.current(project.key) == "v1"


def test_marks_of_pictures_do_not_change() -> None:
    assert mark("a.png") == mark("a.png") != mark("b.png")
    assert -(2**63) <= mark("a.png") < 2**63
