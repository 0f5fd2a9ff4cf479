"""A backbone that was trained along comes back from the store as it left; features and gate too."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from inference.manifest import Manifest
from inference.predictor import load_predictor, read_evidence
from inference.store import Project
from studio.annotations import Label, TaskLabels
from studio.label_config import LabelConfig, parse_label_config
from tests.inference.small import NAME, png, weights_file
from tests.studio.configs import taxonomy_xml, tree_of
from worker import fine_tuning, gate, trainer, training
from worker.asking import Places
from worker.dataset import Dataset, build_dataset, mark
from worker.fine_tuning import forget, wanted
from worker.order import Order
from worker.parts import Parts
from worker.settings import Settings
from worker.snapshot import Snapshot, take
from worker.training import learn
from worker.training_config import TrainingConfig
from worker.tune_recipe import TuneRecipe

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIG: LabelConfig = parse_label_config(
    taxonomy_xml(tree_of([("Fruit", "Apple"), ("Fruit", "Pear"), ("Milk",)]))
)
TREE = CONFIG.tree

#: The rate is high, so that two epochs of three steps make a difference.
TINY = TuneRecipe(hidden=8, epochs=2, batch=4, rate=0.3, folds=3, precision="f32")

RULE: trainer.RuleSettings = {"target": 0.9}

ORDER = Order("somewhere-1-17", fine_tune=False)


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
            backbone_weights=(weights_file(home),),
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
def twelve(parts: Parts) -> Dataset:
    return build_dataset(labelled(12), parts.extractors.base(), "", silent, (0, 1))


@pytest.fixture
def afresh(parts: Parts) -> Iterator[None]:
    """No checkpoint is left by another test, or for one."""
    forget(parts.settings, ORDER.project)
    yield
    forget(parts.settings, ORDER.project)


# Features


def test_every_label_is_gathered_with_its_picture(twelve: Dataset) -> None:
    examples = twelve.examples
    assert (examples.images, len(twelve.refs), twelve.skipped) == (12, 12, {})
    assert examples.image.tolist() == list(range(12))
    assert examples.truth.tolist() == examples.target[:, 0].tolist()
    assert len(set(twelve.marks.tolist())) == 12


def test_vectors_of_every_augmentation_are_read_in_order(twelve: Dataset, parts: Parts) -> None:
    extractor = parts.extractors.base()
    assert twelve.examples.vectors.shape == (12, 2, extractor.channels)
    for number, augmentation in enumerate((0, 1)):
        for at, ref in enumerate(twelve.refs):
            (found,) = extractor.vectors([ref], augmentation=augmentation)
            np.testing.assert_array_equal(twelve.examples.vectors[at, number], found)


def test_pictures_that_cannot_be_had_are_counted_and_left_out(parts: Parts) -> None:
    tasks = [task(0, 1), task(1, 2, picture="/data/local-files/?d=gone.png"), task(2, 3)]
    found = build_dataset(take(tasks, TREE), parts.extractors.base(), "", silent, (0,))
    assert found.examples.images == 2
    assert found.examples.image.tolist() == [0, 1]
    assert found.examples.target.tolist() == [[1], [3]]
    assert sum(found.skipped.values()) == 1


def test_nothing_to_be_had_is_too_little_to_train(parts: Parts) -> None:
    found = build_dataset(take([], TREE), parts.extractors.base(), "", silent)
    assert found.examples.images == 0
    with pytest.raises(trainer.TooFewLabelsError, match="got 0 images"):
        trainer.check_enough(found.examples.images, found.examples.named)


def test_annotators_share_a_picture_and_groups_come_from_the_task(parts: Parts) -> None:
    both = task(0, 1, session="monday")
    both = replace(both, labels=(*both.labels, replace(both.labels[0], annotation_id=9, target=2)))
    tasks = [both, task(1, 2)]
    found = build_dataset(take(tasks, TREE), parts.extractors.base(), "session", silent, (0,))
    assert found.examples.image.tolist() == [0, 0, 1]
    assert found.examples.weight.tolist() == [0.5, 0.5, 1]
    assert list(found.examples.groups) == ["monday", None]
    nested = take([replace(task(0, 1), data={"visit": {"day": "tuesday"}})], TREE)
    found = build_dataset(nested, parts.extractors.base(), "visit.day", silent, (0,))
    assert list(found.examples.groups) == ["tuesday"]


# The backbone too


@pytest.mark.usefixtures("afresh")
def test_what_was_fine_tuned_comes_back_from_the_store(parts: Parts, twelve: Dataset) -> None:
    """Two epochs on twelve pictures: the served log-probabilities are those of training."""
    project = owner(parts)
    made = fine_tuning.fit(TREE, twelve, parts, project.key, RULE, silent, TINY)
    base = parts.extractors.backbone()
    assert any(
        not torch.equal(made.backbone_weights[name], value)
        for name, value in base.module.state_dict().items()
    )
    judged = np.flatnonzero(~np.isnan(made.trained.held_out[:, 0]))
    assert 2 <= len(judged) <= 6
    version = parts.store.publish(
        project.key,
        Manifest(
            tree=TREE.to_json(),
            network=made.network,
            backbone=made.backbone,
            calibration=made.trained.fitted.to_json(),
        ),
        training.tensors_of(TREE, twelve, made),
    )
    predictor = load_predictor(parts.store, project, version)
    extractor = parts.extractors.of(predictor)
    image_keys = dict(extractor.ensure(twelve.refs, (0,)))
    found = extractor.read(twelve.refs, [str(image_keys[at]) for at in range(12)])
    served = predictor.log_probabilities(found[judged])
    np.testing.assert_allclose(served, made.trained.held_out[judged], atol=0.1)
    assert np.ptp(served, axis=0).max() > 0.2  # and they tell pictures apart


class Stopped:
    """Listens, and stops the training the first time a mean loss is told: after an epoch."""

    def __init__(self) -> None:
        self.shares: list[float] = []

    def __call__(self, stage: str, done: int, total: int, **figures: float) -> None:
        if stage == "fine-tuning":
            self.shares.append(done / total)
            if "loss" in figures:
                raise InterruptedError


class Heard(Stopped):
    """Listens only."""

    def __call__(self, stage: str, done: int, total: int, **figures: float) -> None:
        with suppress(InterruptedError):
            super().__call__(stage, done, total, **figures)


@pytest.mark.usefixtures("afresh")
def test_a_stopped_fine_tuning_goes_on_and_ends_as_if_it_had_not_been(
    parts: Parts, twelve: Dataset
) -> None:
    project = owner(parts)
    whole = fine_tuning.fit(TREE, twelve, parts, project.key, RULE, silent, TINY)
    forget(parts.settings, project.key)
    first, second = Stopped(), Heard()
    with pytest.raises(InterruptedError):
        fine_tuning.fit(TREE, twelve, parts, project.key, RULE, first, TINY)
    assert first.shares == sorted(first.shares)
    assert first.shares[-1] == 0.5  # one epoch of two
    resumed = fine_tuning.fit(TREE, twelve, parts, project.key, RULE, second, TINY)
    assert second.shares[0] > 0.5
    assert second.shares[-1] == 1
    assert resumed.backbone["fingerprint"] == whole.backbone["fingerprint"]
    assert resumed.backbone["fingerprint"] != parts.extractors.base().fingerprint
    for name, value in whole.trained.head.state_dict().items():
        assert torch.equal(resumed.trained.head.state_dict()[name], value)
    np.testing.assert_array_equal(resumed.trained.held_out, whole.trained.held_out)


@pytest.mark.usefixtures("afresh")
def test_other_labels_start_afresh(parts: Parts, twelve: Dataset) -> None:
    project, others = owner(parts), Heard()
    with pytest.raises(InterruptedError):
        fine_tuning.fit(TREE, twelve, parts, project.key, RULE, Stopped(), TINY)
    changed = twelve.examples.target.copy()
    changed[0], changed[1] = twelve.examples.target[1], twelve.examples.target[0]
    other = replace(twelve, examples=replace(twelve.examples, target=changed))
    fine_tuning.fit(TREE, other, parts, project.key, RULE, others, TINY)
    assert others.shares[0] < 0.5
    files = [file.name for file in (parts.settings.home / "tuning" / project.key).iterdir()]
    assert len(files) == 1  # the other labels' is gone


@pytest.mark.usefixtures("afresh")
def test_a_picture_that_vanished_since_its_features_were_made_is_left_out(
    parts: Parts, twelve: Dataset
) -> None:
    refs = [("/data/local-files/?d=gone.png", 0), *twelve.refs[1:]]
    made = fine_tuning.fit(
        TREE,
        replace(twelve, refs=refs),
        parts,
        owner(parts).key,
        RULE,
        silent,
        replace(TINY, epochs=1),
    )
    assert np.isnan(made.trained.held_out[0]).all()
    assert not np.isnan(made.trained.held_out).all()


def test_one_group_cannot_be_fine_tuned(parts: Parts, twelve: Dataset) -> None:
    grouped = replace(twelve, examples=replace(twelve.examples, groups=["a"] * 12))
    with pytest.raises(trainer.TooFewLabelsError, match="one group"):
        fine_tuning.fit(TREE, grouped, parts, owner(parts).key, RULE, silent, TINY)


def test_what_is_published_leaves_no_checkpoint(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TuneRecipe, "for_device", lambda _: replace(TINY, epochs=1))
    project = owner(parts, "tuned-1-17")
    folder, seen = parts.settings.home / "tuning" / project.key, list[bool]()

    def report(stage: str, done: int, total: int, **figures: float) -> None:
        if stage == "publishing" and done == 0:
            seen.append(any(folder.iterdir()))

    ended = learn(Order(project.key, fine_tune=True), project, CONFIG, labelled(12), parts, report)
    assert (ended.state, seen) == ("published", [True])  # it was there until the version was
    assert not folder.exists()
    assert parts.store.manifest(project.key, "v1").network["kind"] == "hrn"


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
    small = TrainingConfig(
        augmentations=(0, 1), members=1, hidden=8, epochs=2, least_shown=240, folds=3
    )
    monkeypatch.setattr(TrainingConfig, "for_networks", lambda *_, **__: small)


@pytest.mark.usefixtures("quick")
def test_a_version_is_learnt_published_and_compared(parts: Parts) -> None:
    """First version; the same labels; more labels, judged on what the first had not seen."""
    project = owner(parts, "gate-1-17")
    order = Order(project.key, fine_tune=False)
    first = learn(order, project, CONFIG, labelled(12), parts, silent)
    assert (first.state, first.version) == ("published", "v1")
    assert parts.store.manifest(project.key, "v1").gate["why"] == "the first version"
    again = learn(order, project, CONFIG, labelled(12), parts, silent)
    assert (again.state, again.version) == ("nothing new", None)
    second = learn(order, project, CONFIG, labelled(24), parts, silent)
    assert "for v1 on images labelled since" in second.why
    few = learn(replace(order, force=True), project, CONFIG, labelled(24), parts, silent)
    assert "on images that both held out" in few.why


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


# What a version goes on from


def coloured(parts: Parts, count: int) -> Snapshot:
    """Images that anyone can tell apart: each leaf has a colour of its own."""
    draw, leaves = np.random.default_rng(0), TREE.leaves
    tasks = []
    for at in range(count):
        leaf = at % len(leaves)
        pixels = draw.integers(0, 60, (4, 4, 3)).astype(np.uint8)
        pixels[..., leaf] += 190
        image = Image.fromarray(pixels).resize((180, 180), Image.Resampling.NEAREST)
        assert parts.settings.local_files is not None
        image.save(parts.settings.local_files / f"colour-{at}.png")
        address = f"/data/local-files/?d=colour-{at}.png"
        tasks.append(task(at, leaves[leaf], picture=address))
    return take(tasks, TREE)


#: Learns colours in a second, and nothing.
GOOD = TrainingConfig(
    augmentations=(0,), members=1, hidden=64, dropout=0.2, least_shown=6_000, batch=32, folds=3
)
POOR = replace(GOOD, epochs=1, least_shown=1, rate=1e-9)


@pytest.fixture
def good(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TrainingConfig, "for_networks", lambda *_, **__: GOOD)


@pytest.mark.usefixtures("good")
def test_answers_that_chance_asked_for_reach_calibration_and_gate(parts: Parts) -> None:
    project = owner(parts, "drawn-1-17")
    places = Places("v1", random={3: "untrained", 10: "v1", 17: "v1", 99: "v1"})
    parts.store.write_order(project.key, places.to_json())
    labels = coloured(parts, 60)
    learn(Order(project.key, fine_tune=False), project, CONFIG, labels, parts, silent)
    seen = read_evidence(parts.store.weights(project.key, "v1"))
    assert seen is not None
    assert seen.drawn is not None
    assert np.flatnonzero(seen.drawn).tolist() == [3, 10, 17]
    manifest = parts.store.manifest(project.key, "v1")
    assert manifest.labels["drawn"] == manifest.metrics["drawn"]["checked"] == 3
    calibration = manifest.calibration
    assert (calibration["standing"], calibration["drawn"]) == ("certified", 3)


@pytest.mark.usefixtures("good")
def test_a_version_goes_on_from_the_live_one_and_is_held_against_it(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Folds stay; one that is worse changes nothing; who insists gets what shows less."""
    project = owner(parts, "steady-1-17")
    order, labels = Order(project.key, fine_tune=False), coloured(parts, 64)
    few = take([one for one in labels.tasks if one.task_id < 52], TREE)
    learn(order, project, CONFIG, few, parts, silent)
    second = learn(order, project, CONFIG, labels, parts, silent)
    assert second.state == "published"
    assert "it would pre-label 100 of 100 images, v1 100 of 100" in second.why
    old, new = (parts.store.weights(project.key, name) for name in ("v1", "v2"))
    stays = old["evidence.folds"] == new["evidence.folds"][:52]
    assert stays.float().mean() > 0.75

    with monkeypatch.context() as patched:
        patched.setattr(TrainingConfig, "for_networks", lambda *_, **__: POOR)
        poor = learn(replace(order, force=True), project, CONFIG, labels, parts, silent)
    assert poor.state == "refused"
    assert poor.why.startswith("v2 stays live, v3 stays in the store: ")
    assert "of 64 right against 64 of 64 for v2 on images that both held out" in poor.why
    assert poor.why.endswith("(`hrn promote v3` makes it live all the same)")

    monkeypatch.setattr(gate, "LESS_SHOWN", -1.0)  # as if all versions showed less than the last
    less = learn(replace(order, fine_tune=False), project, CONFIG, few, parts, silent)
    assert (less.state, parts.store.current(project.key)) == ("refused", "v2")
    assert "it would pre-label 100 of 100 images, v2 100 of 100" in less.why
    asked = learn(replace(order, force=True), project, CONFIG, few, parts, silent)
    assert (asked.state, parts.store.current(project.key)) == ("published", "v5")
    assert "asked for by hand, so it goes live although it would pre-label" in asked.why


def earlier(parts: Parts, project: Project) -> str:
    """Make a version live as an earlier release wrote it, with evidence that all were right."""
    learn(Order(project.key, fine_tune=False), project, CONFIG, coloured(parts, 60), parts, silent)
    manifest = parts.store.manifest(project.key, "v1")
    network = {"kind": "frozen", "channels": 256, "reduced": 8, "width": 8}
    tensors = parts.store.weights(project.key, "v1")
    tensors["evidence.folds"] = torch.zeros_like(tensors["evidence.folds"])
    name = parts.store.publish(project.key, replace(manifest, network=network), tensors)
    parts.store.point(project.key, name, reason="test")
    return name


@pytest.mark.usefixtures("good")
def test_a_live_version_of_an_earlier_release_is_replaced_without_new_labels(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even by one that is right less often than the earlier one says it was; and its folds go."""
    project = owner(parts, "earlier-1-17")
    name = earlier(parts, project)
    monkeypatch.setattr(TrainingConfig, "for_networks", lambda *_, **__: replace(POOR, seed=3))
    order, labels = Order(project.key, fine_tune=False), coloured(parts, 60)
    ended = learn(order, project, CONFIG, labels, parts, silent)
    assert (ended.state, name, ended.version) == ("published", "v2", "v3")
    assert ended.why == "v2 is of an earlier release: nothing to compare with"
    assert parts.store.current(project.key) == "v3"
    assert parts.store.weights(project.key, "v3")["evidence.folds"].unique().tolist() == [0, 1, 2]
    following = learn(order, project, CONFIG, coloured(parts, 62), parts, silent)
    assert "v2" not in following.why


@pytest.mark.usefixtures("good")
def test_an_earlier_release_s_version_chosen_by_hand_does_not_stay(parts: Parts) -> None:
    project = owner(parts, "held-1-17")
    earlier(parts, project)
    parts.store.save_project(replace(project, pinned=True))
    order = Order(project.key, fine_tune=False)
    ended = learn(order, project, CONFIG, coloured(parts, 60), parts, silent)
    assert (ended.state, parts.store.current(project.key)) == ("published", "v3")
    known = parts.store.project(project.key)
    assert known is not None
    assert not known.pinned


def test_marks_of_pictures_do_not_change() -> None:
    assert mark("a.png") == mark("a.png") != mark("b.png")
    assert -(2**63) <= mark("a.png") < 2**63
