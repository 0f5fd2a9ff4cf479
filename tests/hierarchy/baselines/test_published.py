"""HRN as published agrees with the published code, and each ablation does what it says."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.testing import assert_close

from hierarchy import LabelTree, log_marginals, tree_loss
from hierarchy.baselines.published import (
    Blocks,
    GranularityBlock,
    Parts,
    Published,
    PublishedOutputs,
    Scores,
)
from hierarchy.baselines.tree_ops import leaf_log_marginals
from hierarchy.errors import ShapeError
from tests.strategies import slow_rows, trees

#: Fruit 0, Milk 1, Apple 2, Pear 3; the leaves are Milk, Apple and Pear, in this order.
SHOP = LabelTree.from_paths([("Fruit", "Apple"), ("Fruit", "Pear"), ("Milk",)])
FRUIT, MILK, APPLE, PEAR = range(4)
CHANNELS = 5


@dataclass(frozen=True)
class Head:
    """What the published head answered, and the weights it had."""

    tree: LabelTree
    stored: dict[str, Tensor]

    def rebuilt(self) -> tuple[nn.Sequential, Published]:
        """The same weights in ours: the whole, with the file's little trunk, and its last part."""
        weight = self.stored["sd/features.0.weight"]
        convolve = nn.Conv2d(weight.shape[1], weight.shape[0], 2, stride=2, bias=False)
        head = Published(
            self.tree,
            weight.shape[0],
            inner=len(self.stored["sd/fc1.1.weight"]),
            features=len(self.stored["sd/fc1.4.weight"]),
        )
        network = nn.Sequential(convolve, nn.ReLU(), head)
        state = {name[3:]: value for name, value in self.stored.items() if name[:3] == "sd/"}
        network.load_state_dict({ours(name, self.tree.depth): v for name, v in state.items()})
        return network, head

    def parts(self, mode: str) -> tuple[Tensor, Tensor]:
        """Sigmoids (B, N) and leaf logits (B, K) of one mode; nodes go level by level."""
        names = ["top_sig", "mid_sig", "leaf_sig"]
        found = [self.stored.get(f"{mode}/{name}") for name in names]
        sigmoids = torch.cat([part for part in found if part is not None], dim=1)
        return sigmoids, self.stored[f"{mode}/leaf_logits"]


def ours(name: str, levels: int) -> str:
    """The name that a weight of the published head has in ours."""
    block, *rest = name.split(".")
    if block == "features":
        return "0.weight"
    if block == f"classifier_{levels}_1":
        return f"2.classify_leaves.{rest[-1]}"
    level = int(block[-1]) - 1
    if block.startswith("classifier"):
        return f"2.classify.{level}.{rest[-1]}"
    if block.startswith("fc"):
        return ".".join(["2.blocks", str(level), "connect", *rest])
    step = 3 * int(rest[0]) + {"conv": 0, "bn": 1}[rest[1]]  # convolution, norm, ReLU, and again
    return f"2.blocks.{level}.convolve.{step}.{rest[-1]}"


def heads(shared: Path) -> Iterator[Head]:
    """Every stored head; CUB's must be there."""
    files = sorted((shared / "golden").glob("head_*.npz"))
    assert "head_cub.npz" in [file.name for file in files]
    sizes = {file.stem: file.with_name(file.name.replace("head", "treeloss")) for file in files}
    for file in files:
        with np.load(sizes[file.stem]) as known:
            parents = known["parent"].tolist()
        with np.load(file) as stored:
            values = {name: torch.from_numpy(stored[name]) for name in stored.files}
        tree = LabelTree.from_parents(parents, [str(node) for node in range(len(parents))])
        yield Head(tree, values)


def build(tree: LabelTree, **switches: object) -> Published:
    torch.manual_seed(len(tree))
    return Published(tree, CHANNELS, inner=4, features=3, **switches)  # type: ignore[arg-type]


def images(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, CHANNELS, 4, 3, generator=torch.Generator().manual_seed(seed))


def outputs(tree: LabelTree, count: int = 1) -> PublishedOutputs:
    """Some outputs in float64, of no network."""
    draw = torch.Generator().manual_seed(len(tree))
    return PublishedOutputs(
        raw=torch.randn(count, len(tree), generator=draw, dtype=torch.float64),
        leaf_logits=torch.randn(count, len(tree.leaves), generator=draw, dtype=torch.float64),
    )


def test_equals_the_published_head_in_eval_mode(shared: Path) -> None:
    for golden in heads(shared):
        network, head = golden.rebuilt()
        with torch.inference_mode():
            found = network.eval()(golden.stored["x"].float())
        sigmoids, logits = golden.parts("eval")
        assert_close(head.scores(found), sigmoids, rtol=1e-5, atol=1e-5)
        assert_close(found.leaf_logits, logits, rtol=1e-5, atol=1e-5)


def test_equals_the_published_head_in_train_mode(shared: Path) -> None:
    for golden in heads(shared):
        network, head = golden.rebuilt()
        found = network.double().train()(golden.stored["x"].double())
        sigmoids, logits = golden.parts("train_f64")
        assert_close(head.scores(found), sigmoids, rtol=1e-10, atol=1e-10)
        assert_close(found.leaf_logits, logits, rtol=1e-10, atol=1e-10)


def test_equals_the_published_losses(shared: Path) -> None:
    for golden in heads(shared):
        network, head = golden.rebuilt()
        targets = golden.stored["labels"]
        found = network.double().train()(golden.stored["x"].double())
        tree, leaf = golden.stored["tree_loss_f64"], golden.stored["ce_loss_f64"]
        assert_close(head.leaf_loss(found, targets), leaf, rtol=1e-10, atol=0)
        by_tree = tree_loss(head.scores(found), targets, golden.tree)
        assert_close(by_tree, tree, rtol=1e-10, atol=0)
        assert_close(head.loss(found, targets), tree + leaf, rtol=1e-10, atol=0)


def test_equals_the_published_gradients(shared: Path) -> None:
    """Stored in float32 for some weights, and as one norm in float64 over all."""
    for golden in heads(shared):
        network, head = golden.rebuilt()
        found = network.double().train()(golden.stored["x"].double())
        head.loss(found, golden.stored["labels"]).backward()
        slopes = {n: p.grad for n, p in network.named_parameters() if p.grad is not None}
        stored = {n: v for n, v in golden.stored.items() if n.startswith("grad_f64/")}
        assert stored
        for name, value in stored.items():
            slope = slopes[ours(name.removeprefix("grad_f64/"), golden.tree.depth)]
            assert_close(slope, value.double(), rtol=1e-6, atol=1e-9)
        norm = torch.stack([slope.norm() for slope in slopes.values()]).norm()
        assert_close(norm, golden.stored["gradnorm_all_f64"], rtol=1e-10, atol=0)


def test_batch_norm_remembers_as_the_published_one_does() -> None:
    """A hundredth of a new batch in the convolutions, a tenth in the linear layers."""
    head = build(SHOP)
    means = [
        module.momentum
        for module in head.modules()
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)
    ]
    assert means == [0.01, 0.01, 0.1, 0.1] * SHOP.depth


def test_the_default_sizes_are_the_published_ones() -> None:
    """Weights of one block: C F + 9 F C + 2 F + 2 C, then 2 C + C F + F + 2 F + 512 F + 512."""
    head = Published(SHOP, CHANNELS)
    c, f = CHANNELS, 1024
    block = (c * f + 9 * f * c + 2 * f + 2 * c) + (2 * c + c * f + f + 2 * f + 512 * f + 512)
    classifiers = 513 * (len(SHOP) + len(SHOP.leaves))
    assert sum(p.numel() for p in head.parameters()) == 2 * block + classifiers


@given(
    tree=trees(),
    blocks=st.sampled_from(["own", "shared"]),
    combine=st.booleans(),
    relu=st.booleans(),
)
def test_each_ablation_puts_levels_together_as_it_says(
    tree: LabelTree, blocks: Blocks, *, combine: bool, relu: bool
) -> None:
    """Level by level from the blocks themselves, node by node from the classifiers' rows."""
    head = build(tree, blocks=blocks, combine=combine, relu=relu).double().eval()
    assert len(head.blocks) == (tree.depth if blocks == "own" else 1)
    maps = images(2).double()
    g = [head.blocks[level if blocks == "own" else 0](maps) for level in range(tree.depth)]
    h = list(accumulate(g)) if combine else g
    h = [level.clamp(min=0) for level in h] if relu else h
    found = head(maps)
    for node, level in enumerate(tree.levels):
        layer, row = head.classify[level], tree.level_nodes(level).index(node)
        assert isinstance(layer, nn.Linear)
        assert_close(found.raw[:, node], h[level] @ layer.weight[row] + layer.bias[row])
    assert_close(found.leaf_logits, head.classify_leaves(h[-1]))


@given(
    tree=trees(max_nodes=8),
    parts=st.sampled_from(["both", "tree", "leaf"]),
    scores=st.sampled_from(["sigmoid", "raw"]),
    data=st.data(),
)
def test_the_loss_agrees_with_a_loop(
    tree: LabelTree, parts: Parts, scores: Scores, data: st.DataObject
) -> None:
    """-log P(target) of every image by listing answers; -log softmax of those with a leaf."""
    node = st.integers(0, len(tree) - 1)
    targets = data.draw(st.lists(node, min_size=1, max_size=4))
    found = outputs(tree, len(targets))
    seen = found.raw.sigmoid() if scores == "sigmoid" else found.raw
    by_tree = -slow_rows(seen, tree)[range(len(targets)), targets].mean()
    rows = zip(found.leaf_logits, targets, strict=True)
    by_leaf = [
        row.exp().sum().log() - row[tree.leaves.index(target)]
        for row, target in rows
        if target in tree.leaves
    ]
    leaf = torch.stack(by_leaf).mean() if by_leaf else torch.zeros((), dtype=torch.float64)
    expected = {"both": by_tree + leaf, "tree": by_tree, "leaf": leaf}[parts]
    head = build(tree, parts=parts, scores=scores)
    assert_close(head.loss(found, torch.tensor(targets)), expected, rtol=1e-10, atol=1e-12)


def test_without_leaf_labels_the_branch_is_not_taught() -> None:
    head = build(SHOP)
    maps, coarse = images(3), torch.tensor([FRUIT] * 3)
    found = head(maps)
    assert_close(head.loss(found, coarse), tree_loss(head.scores(found), coarse, SHOP))
    head.loss(found, coarse).backward()
    assert head.classify_leaves.weight.grad is not None
    assert head.classify_leaves.weight.grad.eq(0).all()
    assert any(p.grad.ne(0).any() for p in head.classify.parameters() if p.grad is not None)


def test_a_leaf_above_the_last_level_is_in_the_branch() -> None:
    head = build(SHOP, parts="leaf")
    found = outputs(SHOP, 2)
    loss = head.loss(found, torch.tensor([MILK, FRUIT]))
    assert_close(loss, -found.leaf_logits[0].log_softmax(0)[0])


def test_is_read_from_its_branches() -> None:
    """Sigmoids above the leaves, a softmax over all leaves, whatever these say of each other."""
    found = outputs(SHOP, 2)
    log_p = build(SHOP).log_probability(found)
    assert_close(log_p[:, FRUIT], found.raw[:, FRUIT].sigmoid().log())
    assert_close(log_p[:, [MILK, APPLE, PEAR]], found.leaf_logits.log_softmax(1))


def test_without_leaf_cross_entropy_a_leaf_is_read_from_its_score() -> None:
    found = outputs(SHOP, 2)
    assert_close(build(SHOP, parts="tree").log_probability(found), found.raw.sigmoid().log())


def test_without_tree_loss_a_node_is_the_sum_of_its_leaves() -> None:
    found = outputs(SHOP, 2)
    expected = leaf_log_marginals(found.leaf_logits, SHOP)
    assert_close(build(SHOP, parts="leaf").log_probability(found), expected)


@pytest.mark.parametrize("scores", ["sigmoid", "raw"])
def test_is_read_from_the_tree_when_asked(scores: Scores) -> None:
    found = outputs(SHOP, 2)
    seen = found.raw.sigmoid() if scores == "sigmoid" else found.raw
    log_p = build(SHOP, scores=scores, read="tree").log_probability(found)
    assert_close(log_p, log_marginals(seen, SHOP))


@given(trees())
def test_any_tree_is_scored_learnt_and_read(tree: LabelTree) -> None:
    head = build(tree)
    found = head(images(len(tree) + 1))
    head.loss(found, torch.arange(len(tree) + 1) % len(tree)).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in head.parameters())
    log_p = head.log_probability(found)
    assert log_p.shape == (len(tree) + 1, len(tree))
    assert log_p.isfinite().all()
    assert (log_p <= 0).all()


def test_far_out_scores_are_read_as_finite_logs() -> None:
    """A float32 sigmoid of -200 is 0, whose log would be lost to a ranking."""
    raw = torch.tensor([[-200.0, -201.0, 0.0, 200.0]])
    log_p = build(SHOP, parts="tree").log_probability(PublishedOutputs(raw, torch.zeros(1, 3)))
    assert_close(log_p[0, :2], torch.tensor([-200.0, -201.0]))


def test_half_precision_is_read_in_float32() -> None:
    found = PublishedOutputs(torch.randn(2, 4).bfloat16(), torch.randn(2, 3).bfloat16())
    head, targets = build(SHOP), torch.tensor([MILK, FRUIT])
    assert head.log_probability(found).dtype == torch.float32
    exact = PublishedOutputs(found.raw.float(), found.leaf_logits.float())
    assert_close(head.leaf_loss(found, targets), head.leaf_loss(exact, targets))


def test_learns_what_it_is_shown() -> None:
    """Three leaves and a coarse image; each is read right at the levels it was taught."""
    torch.manual_seed(0)
    head = Published(SHOP, CHANNELS, inner=16, features=16)
    maps, targets = images(4), torch.arange(4)
    optimiser = torch.optim.Adam(head.parameters(), lr=0.02)
    for _ in range(150):
        optimiser.zero_grad()
        head.loss(head(maps), targets).backward()
        optimiser.step()
    found = head(maps)
    assert head.scores(found)[:, [FRUIT, MILK]].argmax(1).tolist() == [0, 1, 0, 0]
    assert found.leaf_logits[1:].argmax(1).tolist() == [0, 1, 2]


def test_of_vectors_a_block_is_its_linear_layers() -> None:
    vectors = torch.randn(3, CHANNELS)
    head = build(SHOP, maps=False).eval()
    mine = build(SHOP, maps=False).eval()
    mine.load_state_dict(head.state_dict())
    assert not any(isinstance(module, nn.Conv2d) for module in head.modules())
    block, layer = mine.blocks[0], mine.classify[0]
    assert isinstance(block, GranularityBlock)
    assert isinstance(layer, nn.Linear)
    h = torch.relu(block.connect(vectors))
    assert_close(head(vectors).raw[:, [FRUIT, MILK]], layer(h))


@pytest.mark.parametrize("maps", [True, False])
def test_features_of_another_form_are_refused(maps: bool) -> None:  # noqa: FBT001
    wanted = r"\(B, 5, H, W\)" if maps else r"\(B, 5\)"
    with pytest.raises(ShapeError, match=wanted + r", got \(2, 6\)"):
        build(SHOP, maps=maps)(torch.zeros(2, 6))


def test_wrong_targets_are_named_whatever_is_trained() -> None:
    for parts in ("both", "tree", "leaf"):
        with pytest.raises(ShapeError, match="from 0 to 3, got 0 to 4"):
            build(SHOP, parts=parts).loss(outputs(SHOP, 2), torch.tensor([0, 4]))


@pytest.mark.parametrize("name", ["blocks", "parts", "scores", "read"])
def test_a_switch_that_is_not_there_is_named(name: str) -> None:
    with pytest.raises(ValueError, match=rf"{name} must be one of \w+, \w+.*got 'none'"):
        build(SHOP, **{name: "none"})


def test_a_tree_that_is_not_trained_is_not_read() -> None:
    with pytest.raises(ValueError, match="read='branch', or train it with parts='both'"):
        build(SHOP, parts="leaf", read="tree")
