"""A training that was stopped or killed ends with the weights of one that was left in peace."""

import os
import signal
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from hierarchy import LabelTree, tree_loss
from hierarchy.heads import HRNHead, LevelBlock
from inference.backbone import PACKAGES, RandomWeights, load_backbone
from inference.predictor import build_head
from tests.processes import running
from tests.worker.tiny_tuning import (
    PICTURES,
    RECIPES,
    TREE,
    Small,
    backbone,
    lessons,
    show,
    tuner,
)
from worker.checkpoints import Checkpoints
from worker.fitting import Rows
from worker.photos import Pixels
from worker.tune_recipe import TuneRecipe
from worker.tuning import (
    Aim,
    Lessons,
    Network,
    Tuner,
    average_decay,
    follow,
    identity,
    make_optimiser,
    predict,
    rate_factor,
    tree_aim,
)

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).resolve().parents[2]

#: Steps of all epochs of the small recipes: 4 of 3.
STEPS = 12


def silent(stage: str, done: int, total: int, **figures: float) -> None:
    """Nobody listens."""


class StopAt:
    """Listens, and stops the training at a step."""

    def __init__(self, step: int | None = None) -> None:
        self.step, self.steps = step, list[int]()

    def __call__(self, stage: str, done: int, total: int, **figures: float) -> None:
        self.steps.append(done)
        if done == self.step:
            raise InterruptedError


def weights(trained: Tuner) -> dict[str, Tensor]:
    return dict(trained.network.state_dict())


def left_in_peace(kind: str) -> dict[str, Tensor]:
    undisturbed = tuner(RECIPES[kind])
    undisturbed.run(silent)
    return weights(undisturbed)


def assert_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


# Going on


@pytest.mark.parametrize("kind", RECIPES)
@pytest.mark.parametrize(
    ("every_s", "stop", "goes_on_with"), [(0, 5, 6), (0, 9, 9), (3600, 8, 7), (3600, STEPS, 10)]
)
def test_a_stopped_training_goes_on_and_ends_as_if_it_had_not_been(
    tmp_path: Path, kind: str, every_s: float, stop: int, goes_on_with: int
) -> None:
    """One is written after each epoch, and within one when it is due: here always, or never."""
    with pytest.raises(InterruptedError):
        tuner(RECIPES[kind], Checkpoints(tmp_path, kind, every_s=every_s)).run(StopAt(stop))
    resumed, heard = tuner(RECIPES[kind], Checkpoints(tmp_path, kind, every_s=every_s)), StopAt()
    resumed.run(heard)
    assert heard.steps[0] == goes_on_with
    assert_equal(weights(resumed), left_in_peace(kind))


def test_the_mean_loss_of_an_epoch_counts_what_came_before_the_stop(tmp_path: Path) -> None:
    def losses(trained: Tuner) -> list[float]:
        found: list[float] = []
        trained.run(lambda *_, **figures: found.extend(figures[n] for n in ("loss",) if figures))
        return found

    with pytest.raises(InterruptedError):
        tuner(RECIPES["sgd"], Checkpoints(tmp_path, "same", every_s=0)).run(StopAt(5))
    resumed = tuner(RECIPES["sgd"], Checkpoints(tmp_path, "same", every_s=0))
    assert losses(resumed) == losses(tuner(RECIPES["sgd"]))[1:]


@pytest.mark.parametrize("kind", RECIPES)
def test_a_killed_training_goes_on_and_ends_as_if_it_had_not_been(
    tmp_path: Path, kind: str
) -> None:
    """Another process, killed without notice (SIGKILL) in the middle of an epoch."""
    with running(
        [sys.executable, "-m", "tests.worker.tiny_tuning", str(tmp_path), "7", kind],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"7\n"
        os.kill(child.pid, signal.SIGKILL)
        assert child.wait(10) == -signal.SIGKILL
    resumed, heard = tuner(RECIPES[kind], Checkpoints(tmp_path, kind, every_s=0)), StopAt()
    resumed.run(heard)
    assert heard.steps[0] == 8
    assert_equal(weights(resumed), left_in_peace(kind))


def test_a_finished_training_is_not_done_again(tmp_path: Path) -> None:
    done = tuner(RECIPES["adamw"], Checkpoints(tmp_path, "same"))
    assert done.run(silent).steps == STEPS
    again, heard = tuner(RECIPES["adamw"], Checkpoints(tmp_path, "same")), StopAt()
    again.run(heard)
    assert heard.steps == []
    assert_equal(weights(again), weights(done))


def test_a_damaged_checkpoint_costs_only_the_time(tmp_path: Path) -> None:
    saved = Checkpoints(tmp_path, "same", every_s=0)
    with pytest.raises(InterruptedError):
        tuner(RECIPES["sgd"], saved).run(StopAt(5))
    saved.path.write_bytes(saved.path.read_bytes()[:-100])
    resumed, heard = tuner(RECIPES["sgd"], Checkpoints(tmp_path, "same", every_s=0)), StopAt()
    resumed.run(heard)
    assert heard.steps[0] == 1
    assert_equal(weights(resumed), left_in_peace("sgd"))


@pytest.mark.parametrize(
    "other",
    [
        {"recipe": replace(RECIPES["sgd"], seed=1)},
        {"device": "cuda"},
        {"facts": {"labels": "b"}},
        {"network": nn.Linear(2, 4)},
    ],
)
def test_whatever_decides_the_outcome_tells_trainings_apart(other: dict[str, object]) -> None:
    whole = {
        "network": nn.Linear(2, 3),
        "recipe": RECIPES["sgd"],
        "device": "cpu",
        "facts": {"labels": "a"},
    }
    assert identity(**whole) == identity(**whole)  # type: ignore[arg-type]
    assert identity(**whole | other) != identity(**whole)  # type: ignore[arg-type]


# The loop


def test_each_epoch_shows_every_label_once_in_another_order() -> None:
    seen = list[tuple[int, str]]()

    def watched(picture: int, draw: str) -> Pixels:
        seen.append((picture, draw))
        return show(picture, draw)

    recipe = replace(RECIPES["sgd"], epochs=2)
    head = HRNHead(TREE, 8, hidden=8, members=1)
    Tuner(Network(backbone(), head), tree_aim(TREE), Lessons(lessons().rows, watched), recipe).run(
        silent
    )
    first, second = ([picture for picture, _ in seen[at : at + 20]] for at in (0, 20))
    assert sorted(first) == sorted(second) == list(range(PICTURES))
    assert first != second
    assert len({draw for _, draw in seen[:40]}) == 40  # each time another crop


def test_the_steps_are_told_and_the_mean_loss_after_each_epoch() -> None:
    told = list[tuple[int, int, dict[str, float]]]()

    def hear(stage: str, done: int, total: int, **figures: float) -> None:
        told.append((done, total, figures))

    tuner(RECIPES["sgd"]).run(hear)
    assert [done for done, _, figures in told if not figures] == list(range(1, STEPS + 1))
    losses = [(done, figures["loss"]) for done, _, figures in told if figures]
    assert [done for done, _ in losses] == [3, 6, 9, 12]
    assert losses[-1][1] < losses[0][1]
    assert {total for _, total, _ in told} == {STEPS}


def test_a_trial_stops_after_so_many_steps_of_the_whole_schedule() -> None:
    trial = tuner(RECIPES["sgd"])
    tuned = trial.run(silent, limit=4)
    assert (tuned.steps, tuned.all_steps) == (4, STEPS)
    assert tuned.labels_a_second > 0
    assert not trial.network.training


def test_few_labels_are_shown_more_often() -> None:
    recipe = replace(RECIPES["sgd"], least_steps=20)
    assert tuner(recipe).run(silent, limit=1).all_steps == 21  # 7 whole epochs


def test_a_loss_that_is_no_number_ends_the_training() -> None:
    with pytest.raises(FloatingPointError, match="the loss became nan in epoch"):
        tuner(replace(RECIPES["sgd"], rate=1e30)).run(silent)


def flat_network() -> tuple[Network, Aim]:
    """Without batch norm, so that a picture's gradient does not depend on the others."""
    torch.manual_seed(1)
    module = nn.Conv2d(3, 8, 4, stride=4)
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, len(TREE)))
    return Network(backbone(module), head), tree_aim(TREE)


def test_a_batch_in_parts_teaches_what_it_teaches_whole() -> None:
    """One step on 20 weighted labels, at once and in parts of 3, and by hand."""
    ended = []
    for at_once in (64, 3):
        network, aim = flat_network()
        recipe = TuneRecipe(
            epochs=1, batch=PICTURES, at_once=at_once, rate=0.1, decay=0, precision="f32"
        )
        Tuner(network, aim, lessons(), recipe).run(silent)
        ended.append(network.state_dict())
    for name, value in ended[0].items():
        torch.testing.assert_close(ended[1][name], value, rtol=0, atol=1e-6)
    network, _ = flat_network()
    rows = lessons().rows
    pixels = torch.from_numpy(np.stack([show(at, f"0 0 {at}") for at in range(PICTURES)]))
    tree_loss(network(pixels), rows.target, TREE, weights=rows.weight).backward()
    head = network.head[2]  # type: ignore[index]
    torch.testing.assert_close(
        ended[0]["head.2.weight"], head.weight - 0.1 * head.weight.grad, rtol=0, atol=1e-6
    )


def test_a_union_of_nodes_is_learnt_from() -> None:
    rows = lessons().rows
    both = torch.stack([rows.target, torch.where(rows.target == 1, 3, -1)], dim=1)
    network, aim = flat_network()
    recipe = TuneRecipe(epochs=1, batch=8, precision="f32")
    before = network.head[2].weight.clone()  # type: ignore[index]
    Tuner(network, aim, Lessons(Rows(rows.image, both, rows.weight), show), recipe).run(silent)
    assert not torch.equal(network.head[2].weight, before)  # type: ignore[index]


# Rates and weights


def test_the_published_rate_falls_by_a_cosine_once_an_epoch() -> None:
    recipe = TuneRecipe(epochs=2)
    assert [rate_factor(recipe, step, 6, 3) for step in range(6)] == pytest.approx(
        [1, 1, 1, 0.5, 0.5, 0.5]
    )


def test_adamw_warms_up_and_falls_each_step() -> None:
    recipe = replace(TuneRecipe.adamw(), warm_up=0.2)
    factors = [rate_factor(recipe, step, 10, 5) for step in range(10)]
    assert factors[:3] == pytest.approx([1 / 3, 2 / 3, 1])
    assert factors[3:] == sorted(factors[3:], reverse=True)
    assert factors[6] == pytest.approx(0.5)
    assert 0 < factors[9] < 0.05


def test_the_backbone_gets_a_tenth_and_decay_is_as_published() -> None:
    network = Network(backbone(), nn.Linear(8, 4))
    rates = {
        (group["lr"], group["weight_decay"], tuple(value.ndim for value in group["params"]))
        for group in make_optimiser(network, TuneRecipe(rate=0.01)).param_groups
    }
    assert rates == {
        (0.01, 5e-4, (2,)),
        (0.01, 5e-4, (1,)),
        (0.001, 5e-4, (4,)),
        (0.001, 5e-4, (1, 1)),
    }


def test_adamw_spares_biases_and_norms() -> None:
    network = Network(backbone(), nn.Linear(8, 4))
    for group in make_optimiser(network, TuneRecipe.adamw()).param_groups:
        assert (group["weight_decay"] > 0) == (group["params"][0].ndim > 1)


def test_an_average_follows_and_counters_are_copied() -> None:
    average, network = nn.BatchNorm1d(1), nn.BatchNorm1d(1)
    with torch.no_grad():
        network.weight.fill_(3.0)
        network.num_batches_tracked.fill_(5)  # type: ignore[union-attr]
    follow(average, network, 0.75)
    assert average.weight.item() == 1.5
    assert average.num_batches_tracked == 5
    assert [average_decay(0.9, step) for step in (1, 90, 1000)] == pytest.approx([2 / 11, 0.9, 0.9])


def test_what_is_kept_is_the_average() -> None:
    recipe = replace(RECIPES["adamw"], average=0.5, epochs=1)
    followed = tuner(recipe)
    followed.run(silent)
    plain = tuner(replace(recipe, average=0.0))
    expected: dict[str, Tensor] = {n: v.clone() for n, v in weights(plain).items()}

    def watch(stage: str, done: int, total: int, **figures: float) -> None:
        if not figures:
            decay = min(0.5, (1 + done) / (10 + done))
            for name, value in weights(plain).items():
                expected[name] = decay * expected[name] + (1 - decay) * value

    plain.run(watch)
    for name, value in followed.network.named_parameters():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-6)


def test_frozen_statistics_stay_as_they_came() -> None:
    recipe = replace(RECIPES["sgd"], frozen_statistics=True)
    frozen, free = tuner(recipe), tuner(RECIPES["sgd"])
    before = Small().normalise.running_mean
    frozen.run(silent)
    free.run(silent)
    name = "backbone.module.normalise.running_mean"
    assert torch.equal(weights(frozen)[name], before)  # type: ignore[arg-type]
    assert not torch.equal(weights(free)[name], before)  # type: ignore[arg-type]
    own = [n for n in weights(frozen) if n.startswith("head.") and n.endswith("running_mean")]
    assert own
    assert all(weights(frozen)[name].abs().sum() > 0 for name in own)  # the head's are its own


def test_batch_norms_end_with_the_statistics_of_the_pictures() -> None:
    """After two steps a running mean with momentum 0.1 would be at 19 % of the way."""
    module = Small()
    network = Network(backbone(module), HRNHead(TREE, 8, hidden=8, members=1))
    recipe = replace(RECIPES["sgd"], epochs=2, batch=PICTURES, at_once=64)
    still = Lessons(lessons().rows, lambda picture, _: show(picture, ""))
    Tuner(network, tree_aim(TREE), still, recipe).run(silent)
    pixels = torch.from_numpy(np.stack([show(at, "") for at in range(PICTURES)]))
    vectors = network.backbone(pixels).mean(dim=(2, 3))
    ours = network.head.blocks[0]  # type: ignore[index]
    assert isinstance(ours, LevelBlock)
    wide = ours.connect[0](vectors)
    torch.testing.assert_close(ours.normalise.running_mean, wide.mean(dim=0), rtol=0.01, atol=1e-3)
    assert ours.normalise.momentum == 0.1


def test_answers_come_in_order_and_do_not_depend_on_the_others() -> None:
    trained = tuner(RECIPES["sgd"])
    trained.run(silent, limit=2)
    aim, some = tree_aim(TREE), [*range(70), 3]  # more than are judged at once

    def look(picture: int) -> Pixels:
        return show(picture, "")

    found = predict(trained.network, aim, look, some)
    assert found.shape == (71, len(TREE))
    np.testing.assert_allclose(found[70], found[3], atol=1e-5)
    np.testing.assert_allclose(found[:1], predict(trained.network, aim, look, [0]), atol=1e-5)
    assert np.ptp(found[:, 1]) > 0


@pytest.mark.parametrize(
    "wrong", [{"epochs": 0}, {"batch": 1}, {"at_once": 2}, {"warm_up": 1.0}, {"average": 1.0}]
)
def test_a_recipe_that_cannot_be_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"got .*[012]"):
        TuneRecipe(**wrong)  # type: ignore[arg-type]


# Real backbones


def one_step(name: str, weights_from: Path | RandomWeights | None = None) -> None:
    """A step in bfloat16 on three pictures; then maps of the sizes that a manifest would tell."""
    tree = LabelTree.from_paths([("Fruit", "Apple"), ("Fruit", "Pear"), ("Milk",)])
    base = load_backbone(name, weights=weights_from)
    network = {"kind": "hrn", "channels": base.channels, "hidden": 16, "members": 1}
    whole, side = Network(base, build_head(tree, network)), base.preparation.crop
    before = {name: value.clone() for name, value in whole.named_parameters()}
    draw = np.random.default_rng(0)
    pixels = draw.integers(0, 256, (3, 3, side, side), dtype=np.uint8)
    rows = Rows(torch.arange(3), torch.tensor([1, 2, 3]), torch.ones(3))
    taught = Lessons(rows, lambda picture, _: pixels[picture])
    recipe = TuneRecipe(epochs=1, batch=3, precision="bf16")
    assert Tuner(whole, tree_aim(tree), taught, recipe).run(silent).steps == 1
    moved = [
        name for name, value in whole.named_parameters() if not torch.equal(value, before[name])
    ]
    assert len(moved) > 0.8 * len(
        before
    )  # a ResNet begins with norms of 0, and nothing behind them
    assert all(value.isfinite().all() for value in whole.state_dict().values())
    with torch.inference_mode():
        maps = whole.backbone(torch.from_numpy(pixels[:2]))
        scores = whole.head(maps)
    assert maps.shape == (2, network["channels"], base.grid, base.grid)
    assert scores.shape == (2, len(tree))


@pytest.mark.parametrize("name", PACKAGES)
def test_each_packaged_size_learns_in_bfloat16(name: str) -> None:
    """Its own weights where the package is installed, which the larger ones' need not be."""
    one_step(name, None if find_spec(PACKAGES[name]) else RandomWeights())


def test_a_resnet_learns_from_a_file_of_weights(tmp_path: Path) -> None:
    state = load_backbone("resnet50", weights=RandomWeights()).module.state_dict()
    tensors = {name.removeprefix("network."): value for name, value in state.items()}
    file = tmp_path / "resnet50.safetensors"
    safetensors.torch.save_file(tensors, file)
    one_step("resnet50", file)


def test_accuracy_is_told_with_the_loss_after_each_epoch() -> None:
    told: list[dict[str, float]] = []

    def report(stage: str, done: int, total: int, **figures: float) -> None:
        if figures:
            told.append(figures)

    tuner(RECIPES["adamw"]).run(report)
    assert len(told) == RECIPES["adamw"].epochs
    assert all(figures["loss"] > 0 for figures in told)
    assert all(0 <= figures["accuracy"] <= 1 for figures in told)


def test_right_is_the_best_node_of_the_targets_own_level() -> None:
    aim = tree_aim(TREE)
    assert aim.right is not None
    scores = torch.full((len(TREE), len(TREE)), -4.0)
    for node in range(len(TREE)):
        for above in TREE.ancestors(node):
            scores[node, above] = 4.0
    targets = torch.arange(len(TREE))
    assert aim.right(scores, targets).all()
    padded = torch.stack([targets, torch.full_like(targets, -1)], dim=1)
    assert aim.right(scores, padded).all()
    others = torch.tensor(
        [
            next(
                (
                    n
                    for n, level in enumerate(TREE.levels)
                    if level == TREE.levels[node] and n != node
                ),
                node,
            )
            for node in range(len(TREE))
        ]
    )
    differ = others != targets
    assert differ.any()
    assert not aim.right(scores, others)[differ].any()
