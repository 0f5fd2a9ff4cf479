"""Figures for people of a version's held-out images: by level, by node, by setting.

Values in, values out; nothing is read or written here. Letters: n images, N nodes, L levels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hierarchy import LabelTree
from hierarchy.calibration import Evidence, deciding, fit_platt, left_out
from hierarchy.decisions import Decisions, choices
from hierarchy.depth_selection import (
    LEAST_PROBABILITY,
    DepthRule,
    Floats,
    Ints,
    choose_depth,
    corrected,
)
from hierarchy.metrics import accuracy_by_level
from hierarchy.metrics.ancestors import ancestor_paths, covers
from hierarchy.metrics.calibration import binned
from hierarchy.metrics.selective import risk_coverage
from hierarchy.tree import TOP
from inference.manifest import Manifest
from inference.predictor import (
    EVIDENCE,
    Predictor,
    read_evidence,
)

#: Points of a curve that a page is sent: more cannot be told apart on a screen.
POINTS = 120

#: Bins of a calibration diagram.
BINS = 10

#: Checked answers over which the running accuracy is taken.
WINDOW = 50


@dataclass(frozen=True, eq=False)
class Record:
    """The images that a version was checked on, as it keeps them.

    Attributes:
        seen: of each decision level's best node the probability, and whether it was right.
        truth: ``(n,)`` deepest node known.
        nodes: ``(n, L)`` the best node of each level of the tree.
        labels: ``(N,)`` labels that name exactly this node.
    """

    seen: Evidence
    truth: Ints
    nodes: Ints
    labels: Ints


def as_tensors(*, truth: Ints, nodes: Ints, labels: Ints) -> dict[str, Tensor]:
    """Return what a version's file keeps for `Record` beside the evidence itself."""
    kept = {"truth": truth, "nodes": nodes, "labels": labels}
    return {f"{EVIDENCE}{name}": torch.from_numpy(ids).int() for name, ids in kept.items()}


def read_record(tensors: Mapping[str, Tensor]) -> Record | None:
    """Read what a version's file keeps; None where it keeps no evidence."""
    seen = read_evidence(tensors)
    if seen is None:
        return None
    truth, nodes, labels = (
        tensors[f"{EVIDENCE}{name}"].long().numpy() for name in ("truth", "nodes", "labels")
    )
    return Record(seen, truth, nodes, labels)


# By node


@dataclass(frozen=True, eq=False)
class NodeFigures:
    """Figures of every node, each ``(N,)``.

    Attributes:
        exact: labels that name exactly this node.
        below: labels that name something below it.
        checked: held-out images that truly show the node, or something below it; none are
            counted for a node without siblings, which cannot be wrong once its parent is right.
        right: how many of those had it as their level's best node.
        said: held-out images, known down to its level, that had it as that level's best node.
    """

    exact: Ints
    below: Ints
    checked: Ints
    right: Ints
    said: Ints

    def accuracy(self, node: int) -> float | None:
        """Share of the node's images that were recognised as it; None without any."""
        checked = int(self.checked[node])
        return int(self.right[node]) / checked if checked > 0 else None

    def precision(self, node: int) -> float | None:
        """Share of the images taken for it that truly show it; None without any."""
        said = int(self.said[node])
        return int(self.right[node]) / said if said > 0 else None


def node_figures(record: Record, tree: LabelTree) -> NodeFigures:
    """Count labels and accuracy of every node, in O(N + n L)."""
    truth = ancestor_paths(record.truth, tree)  # (n, L)
    known = (truth != TOP) & choices(tree)[truth]
    hit = known & (truth == record.nodes)
    checked, right, said = (
        np.bincount(ids, minlength=len(tree))
        for ids in (truth[known], truth[hit], record.nodes[known])
    )
    return NodeFigures(record.labels, _sums_below(record.labels, tree), checked, right, said)


def _sums_below(counts: Ints, tree: LabelTree) -> Ints:
    """``(N,)`` sum over all descendants, the node itself left out."""
    of = tree.arrays
    total = np.concatenate([[0], np.cumsum(counts[np.array(tree.preorder)])])
    result: Ints = total[of.leave] - total[of.enter] - counts
    return result


@dataclass(frozen=True)
class Confusion:
    """Pictures of one node that were taken for one of its siblings.

    Attributes:
        node: what they truly show.
        taken_for: the sibling.
        count: how many.
        checked: held-out images of ``node``.
    """

    node: int
    taken_for: int
    count: int
    checked: int


def confusions(record: Record, tree: LabelTree) -> list[Confusion]:
    """List pairs of siblings that were taken for each other, the most frequent first.

    Two root nodes are siblings. Ties go to the lower ids.
    """
    truth, size = ancestor_paths(record.truth, tree), len(tree)
    known = truth != TOP
    parents = np.array(tree.parents)
    mixed = known & (truth != record.nodes) & (parents[truth] == parents[record.nodes])
    pairs, counts = np.unique(truth[mixed] * size + record.nodes[mixed], return_counts=True)
    checked = np.bincount(truth[known], minlength=size)
    return [
        Confusion(pair // size, pair % size, int(counts[at]), int(checked[pair // size]))
        for at, pair in sorted(enumerate(pairs.tolist()), key=lambda one: (-counts[one[0]], one[1]))
    ]


# By level


@dataclass(frozen=True)
class LevelRow:
    """One level of the tree: how right the network is there, and what is shown of it.

    Attributes:
        level: 1 for the root nodes.
        nodes: on that level.
        checked: held-out images whose true label reaches it, as `accuracy_by_level` counts them.
        right: how many of those had the true node as the level's best.
        given: share of all held-out images that are answered on exactly this level.
        given_checked: those of them that could be judged.
        given_accuracy: share of those that is right; None without any.
        least: least corrected probability at which the level can be shown; None where it never is.
    """

    level: int
    nodes: int
    checked: int
    right: int
    given: float
    given_checked: int
    given_accuracy: float | None
    least: float | None

    @property
    def accuracy(self) -> float | None:
        """Share that is right; None without any image."""
        return self.right / self.checked if self.checked else None


def level_rows(record: Record, rule: DepthRule, decisions: Decisions) -> list[LevelRow]:
    """Return how right each level of the tree is, alone and as it is shown under a rule.

    The correction is that of each image left out, as in certificates. Levels that leave no choice
    are left out.
    """
    seen, tree = record.seen, decisions.tree
    depth, at = choose_depth(_sure(seen, rule), rule, seen.at, seen.like), seen.at
    rows_ = np.arange(len(seen))
    right = np.hstack([np.full((len(seen), 1), -1), seen.right])[rows_, depth]
    shown_at = np.hstack([np.zeros((len(seen), 1), dtype=np.int64), at])[rows_, depth]
    figures = {row["level"]: row for row in accuracy_by_level(record.nodes, record.truth, tree)}
    of_level = np.array(tree.levels)
    rows = []
    for level in range(1, tree.depth + 1):
        at_level = [ids[of_level[ids] == level - 1] for ids in decisions.levels]
        steps = [step for step, ids in enumerate(at_level) if len(ids)]
        if not steps:
            continue
        here = right[shown_at == level]
        here = here[here >= 0]
        own = figures.get(level, {"checked": 0, "right": 0})
        least = [_least(rule, step, level) for step in steps]
        open_ = [one for one in least if one is not None]
        rows.append(
            LevelRow(
                level,
                len(tree.level_nodes(level - 1)),
                own["checked"],
                own["right"],
                float((shown_at == level).mean()) if len(seen) else 0.0,
                len(here),
                _mean(here),
                min(open_) if open_ else None,
            )
        )
    return rows


def _least(rule: DepthRule, step: int, level: int) -> float | None:
    """Least corrected probability at which a node could be shown; None where it never is.

    Where the level is the best of several, the price rule may want more of it than this.

    Args:
        rule: when to stop.
        step: the node's decision level, 0 the first.
        level: its level of the tree, 1 for the root nodes.
    """
    floor = min(LEAST_PROBABILITY, rule.target)
    closed = level < rule.minimum or (rule.maximum is not None and level > rule.maximum)
    if rule.price is None or closed:
        return None
    if rule.thresholds is not None:
        least = rule.thresholds[step] if step < len(rule.thresholds) else None
        return None if least is None else max(floor, least)
    # depth + bonus - price * (target - P) > 0, solved for P
    bound = rule.target - (step + 1 + rule.bonus) / max(rule.price, 1e-12)
    return max(floor, bound) if bound < 1 else None


def level_name(seen: Evidence, step: int) -> str:
    """Name a decision level by the tree levels of its nodes, such as "2" or "2 to 3"."""
    at = seen.at[:, step]
    low, high = (int(at.min()), int(at.max())) if len(at) else (step + 1, step + 1)
    return str(low) if low == high else f"{low} to {high}"


@dataclass(frozen=True)
class LevelCurve:
    """The accuracy of answers on a decision level when only the surest images are answered.

    Attributes:
        level: the level of the tree, see `level_name`.
        coverage: ascending, shares of the images that could be judged.
        accuracy: of what is answered there.
    """

    level: str
    coverage: tuple[float, ...]
    accuracy: tuple[float, ...]


def coverage_curves(seen: Evidence, rule: DepthRule, *, points: int = POINTS) -> list[LevelCurve]:
    """Return right answers against coverage, level by level, at no more than ``points``."""
    sure, curves = _sure(seen, rule), []
    for level in range(seen.right.shape[1]):
        known = seen.right[:, level] >= 0
        curve = risk_coverage(sure[known, level], seen.right[known, level] == 1)
        some = _some(len(curve.coverage), points)
        curves.append(
            LevelCurve(
                level_name(seen, level),
                tuple(curve.coverage[some].round(4).tolist()),
                tuple((1 - curve.risk[some]).round(4).tolist()),
            )
        )
    return curves


def _some(count: int, wanted: int) -> Ints:
    """Choose positions, evenly spaced, the last among them."""
    if count <= wanted:
        return np.arange(count)
    return np.unique(np.linspace(0, count - 1, wanted).round().astype(np.int64))


@dataclass(frozen=True)
class Bin:
    """Pictures of about one probability.

    Attributes:
        count: how many.
        stated: their mean probability.
        came_true: share that is right.
    """

    count: int
    stated: float
    came_true: float


def calibration_bins(seen: Evidence, rule: DepthRule, *, bins: int = BINS) -> list[list[Bin]]:
    """Return, for each decision level, what probabilities promised and what came true."""
    sure, found = _sure(seen, rule), []
    for level in range(seen.right.shape[1]):
        known = seen.right[:, level] >= 0
        parts = binned(sure[known, level], seen.right[known, level] == 1, bins=bins)
        rows = zip(*(part.tolist() for part in parts), strict=True)
        found.append([Bin(*row) for row in rows])
    return found


def _sure(seen: Evidence, rule: DepthRule) -> Floats:
    """``(n, L)`` corrected probabilities; by a correction without the image, if it is from these.

    The evidence is kept in single precision, so that a fit to it agrees to some digits only.
    """
    sure = corrected(seen.probability, rule.platt)
    fitted_to = deciding(seen, rule.target)
    if not len(fitted_to):
        return sure
    own = fit_platt(fitted_to)
    same = [len(row) for row in own] == [len(row) for row in rule.platt]
    if same and np.allclose(own, rule.platt, rtol=1e-2, atol=1e-2):
        which = slice(None) if fitted_to is seen or seen.drawn is None else seen.drawn
        sure[which] = left_out(fitted_to, rule.platt)
    return sure


def _mean(right: Ints) -> float | None:
    return float(right.mean()) if len(right) else None


# Since it went live


@dataclass(frozen=True)
class Running:
    """The accuracy of shown pre-labels as answers came in.

    Attributes:
        answers: how many could be judged so far, ascending.
        accuracy: share of the newest ``WINDOW`` of those that was right.
        overall: share of all so far.
    """

    answers: tuple[int, ...]
    accuracy: tuple[float, ...]
    overall: tuple[float, ...]


def running(
    rows: Sequence[Mapping[str, Any]], *, window: int = WINDOW, points: int = POINTS
) -> Running:
    """Follow the rows that are kept beside a version, in the order they were submitted."""
    judged = [row["verdict"] for row in rows if row["depth"] and row["verdict"] >= 0]
    right = np.array(judged, dtype=np.float64)
    total = np.concatenate([[0.0], right.cumsum()])
    count = np.arange(1, len(right) + 1)
    first = np.maximum(0, count - window)
    newest = (total[count] - total[first]) / (count - first)
    some = _some(len(right), points)
    return Running(
        tuple(count[some].tolist()),
        tuple(newest[some].round(4).tolist()),
        tuple((total[count] / count)[some].round(4).tolist()),
    )


# One image


@dataclass(frozen=True)
class Twig:
    """A node among its siblings, in one image.

    Attributes:
        node: its id.
        probability: corrected, as in answers.
        on_path: whether it lies on the way down.
    """

    node: int
    probability: float
    on_path: bool


@dataclass(frozen=True)
class Step:
    """One step down the tree: the most probable children of a node, and what is not among them.

    Attributes:
        twigs: the likeliest, and the one on the path.
        others: how many more children there are.
        other: their probabilities together.
        none: what is left for "none of these", once the node above is what it is.
    """

    twigs: tuple[Twig, ...]
    others: int
    other: float
    none: float


def path_of(predictor: Predictor, log_p: Floats, shown: Sequence[str] | None) -> list[int]:
    """Choose the nodes that explain an image: through what is shown, to the best leaf below it.

    Args:
        predictor: the version.
        log_p: ``(N,)`` of one image.
        shown: path of the pre-label; None to go to the best leaf of all.
    """
    tree = predictor.tree
    leaves = np.array(tree.leaves)
    if shown is not None:
        node = np.array([tree.index(shown)])
        leaves = leaves[covers(node, leaves, tree)]
    return list(tree.ancestors(int(leaves[log_p[leaves].argmax()])))


def branches(
    predictor: Predictor, log_p: Floats, path: Sequence[int], *, limit: int = 5
) -> list[Step]:
    """List, down a path, each step's node among its most probable siblings.

    Args:
        predictor: the version.
        log_p: ``(N,)`` of one image.
        path: nodes from the root node down, as `path_of` gives them.
        limit: siblings shown a step, the node on the path included.
    """
    tree, steps, above, whole = predictor.tree, [], TOP, 1.0
    for node in path:
        ids = np.array(tree.level_nodes(0) if above == TOP else tree.children[above])
        sure = predictor.sure(log_p[None], ids[None])[0]
        order = np.argsort(-log_p[ids], kind="stable").tolist()
        at = ids.tolist().index(node)
        shown = order[:limit] if at in order[:limit] else [*order[: limit - 1], at]
        twigs = tuple(Twig(int(ids[k]), float(sure[k]), k == at) for k in shown)
        other = float(sure.sum() - sure[shown].sum())
        none = max(0.0, whole - float(sure.sum()))
        steps.append(Step(twigs, len(ids) - len(shown), max(0.0, other), none))
        above, whole = node, float(sure[at])
    return steps


# Two versions


@dataclass(frozen=True)
class Change:
    """A figure of two versions.

    Attributes:
        name: what it is, for people.
        kind: how to write it: ``share``, ``number`` or ``count``.
        first: None where it is not known.
        second: likewise.
        better: whether ``more`` or ``less`` of it is better, "" if neither.
        of: how many images the one and the other are a share of; None for other figures.
    """

    name: str
    kind: str
    first: float | None
    second: float | None
    better: str
    of: tuple[int, int] | None = None

    @property
    def difference(self) -> float | None:
        """Second less first; None where one is not known."""
        if self.first is None or self.second is None:
            return None
        return self.second - self.first


def compare_manifests(first: Manifest, second: Manifest) -> list[Change]:
    """Compare the figures of two versions, each on its own held-out images."""
    both = (first, second)
    levels = [_level_figures(one) for one in both]
    rows = []
    for level in sorted(levels[0].keys() | levels[1].keys()):
        (before, first_of), (after, second_of) = (one.get(level, (None, 0)) for one in levels)
        of = (first_of, second_of)
        rows.append(Change(f"Accuracy on level {level}", "share", before, after, "more", of))
    wanted = (
        ("Accuracy of the best leaf", "share", ("metrics", "leaf_accuracy"), "more"),
        ("Log-loss (nats)", "number", ("metrics", "log_loss"), "less"),
        ("Calibration error of leaves", "share", ("metrics", "leaf_ece"), "less"),
        ("Pictures that get a label", "share", ("calibration", "given"), "more"),
        ("Mean depth shown", "number", ("calibration", "mean_depth"), "more"),
        ("Target accuracy", "share", ("calibration", "rule", "target"), ""),
        ("Labels learnt from", "count", ("labels", "labels"), ""),
        ("Pictures held out", "count", ("metrics", "held_out"), ""),
        ("Seconds to train", "number", ("seconds",), ""),
        ("Size in bytes", "count", ("weights_bytes",), ""),
    )
    for name, kind, keys, better in wanted:
        found = [_within(one, keys) for one in both]
        if found != [None, None]:
            leaves = _leaves(both) if keys[-1] == "leaf_accuracy" else None
            rows.append(Change(name, kind, found[0], found[1], better, leaves))
    return rows


def _leaves(both: tuple[Manifest, Manifest]) -> tuple[int, int]:
    """Held-out images with a leaf label, in the one and the other."""
    first, second = (int(_within(one, ("metrics", "leaf_checked")) or 0) for one in both)
    return first, second


def _level_figures(manifest: Manifest) -> dict[int, tuple[float, int]]:
    rows = manifest.metrics.get("by_level") or []
    return {int(row["level"]): (row["accuracy"], row["checked"]) for row in rows}


def _within(manifest: Manifest, keys: Sequence[str]) -> float | None:
    found: object = getattr(manifest, keys[0])
    for key in keys[1:]:
        found = found.get(key) if isinstance(found, Mapping) else None
    return float(found) if isinstance(found, int | float) else None


@dataclass(frozen=True)
class NodeChange:
    """A node of two versions whose accuracy differs.

    Attributes:
        path: the node, from the root node.
        first: its accuracy in the one, None where it had no held-out image or was not there.
        second: in the other.
        checked: held-out images in the one and the other.
    """

    path: tuple[str, ...]
    first: float
    second: float
    checked: tuple[int, int]

    @property
    def difference(self) -> float:
        """Second less first."""
        return self.second - self.first


def node_changes(
    first: tuple[NodeFigures, LabelTree], second: tuple[NodeFigures, LabelTree], *, least: int = 5
) -> list[NodeChange]:
    """List nodes of both versions with enough held-out images in each, worst change first.

    Args:
        first: the one's figures and tree.
        second: the other's.
        least: held-out images; what fewer say is chance.
    """
    there = {path: node for node, path in enumerate(second[1].paths)}
    found = []
    for node, path in enumerate(first[1].paths):
        other = there.get(path)
        if other is None:
            continue
        checked = (int(first[0].checked[node]), int(second[0].checked[other]))
        before, after = first[0].accuracy(node), second[0].accuracy(other)
        if before is not None and after is not None and min(checked) >= least and before != after:
            found.append(NodeChange(path, before, after, checked))
    return sorted(found, key=lambda one: (one.difference, one.path))


# Where nothing is shown


#: What is stated of all images weighs as much as that many errors seen.
STATED = 10

#: Images of which is said how many were wrong, also where the version is sure of fewer.
FEWEST = 10

#: Times as many images as there are, beyond which nobody can say how many more are needed.
FURTHEST = 20

#: More answers than that are never named.
MOST = 4000

#: Draws of which half must show something.
DRAWS = 32


@dataclass(frozen=True)
class Missing:
    """Why a version shows nothing, and what would change that.

    Attributes:
        target: accuracy asked of shown labels.
        checked: labels that could be checked, of those that the version is surest of.
        wrong: how many of them were wrong.
        answers: about how many more answers let it show something, if it goes on as right as now;
            None where nobody can say.
        at_least: nothing could be checked yet: that many are needed in any case.
    """

    target: float
    checked: int
    wrong: int
    answers: int | None
    at_least: bool = False

    @property
    def words(self) -> str:
        """For people, after "shows nothing yet: "."""
        if self.answers is None and self.wrong > (1 - self.target) * self.checked:
            return (
                f"{self.wrong} of the {self.checked} labels that it is surest of were wrong, too "
                f"many for {self.target:.0%}: more answers may help, or a lower target"
            )
        if self.answers is None:
            return (
                f"it is sure of too few labels to say how many more answers {self.target:.0%} "
                "needs: label more, or set a lower target"
            )
        count = f"{self.answers} more answer{'' if self.answers == 1 else 's'}"
        return f"too little evidence; {'at least' if self.at_least else 'about'} {count}"


def missing_evidence(
    seen: Evidence, *, target: float, minimum: int = 1, maximum: int | None = None
) -> Missing:
    """Estimate how many more answers a version that shows nothing needs to show something.

    It begins to show the labels that it is surest of, once (wrong + 1) / (checked + 1) of them is
    no more than the target allows (``calibration.fit_rule``). Both grow with the answers; how many
    of them are wrong is taken from those seen and, while they are few, from what is stated of them.

    Args:
        seen: held-out evidence of that version.
        target: accuracy asked of shown labels.
        minimum: shallowest depth shown.
        maximum: deepest depth shown, None for no limit.
    """
    risk = 1 - target
    count, seen = len(seen), deciding(seen, target)
    share = len(seen) / max(1, count)  # of the answers to come, so many decide
    allowed = (seen.at >= minimum) & (seen.at <= (maximum or np.inf))
    known = np.where(allowed, seen.right, -1)
    if not (known >= 0).any():
        return Missing(target, 0, 0, int(np.ceil(1 / risk - 1 - 1e-9)), at_least=True)
    rows, sure = np.arange(len(seen)), np.where(allowed, left_out(seen, fit_platt(seen)), 0.0)
    safest = sure.argmax(axis=1)
    stated, right = sure[rows, safest], known[rows, safest]
    order = np.argsort(-stated, kind="stable")
    surest = int((stated >= target).sum())
    some = right[order[: max(surest, FEWEST) if surest else len(order)]]
    said = int((some >= 0).sum()), int((some == 0).sum())
    wrong, foretold = int((right == 0).sum()), float((1 - stated)[right >= 0].sum())
    error = np.clip((1 - stated) * (wrong + STATED) / (foretold + STATED), 0, 1)
    for more in np.geomspace(1, min(FURTHEST * len(stated), MOST), 24).astype(int):
        if _shows(stated, right, error, int(more), risk):
            return Missing(target, *said, _round(int(np.ceil(more / share))))
    return Missing(target, *said, None)


def _shows(stated: Floats, right: Ints, error: Floats, more: int, risk: float) -> bool:
    """Tell whether a label would be shown after ``more`` answers, in half of the draws of them.

    Args:
        stated: ``(n,)`` probability of each image's surest label.
        right: ``(n,)`` 1 right, 0 wrong, -1 not known.
        error: ``(n,)`` chance that such a label is wrong.
        more: images drawn from these, with replacement.
        risk: share of shown labels that may be wrong.
    """
    rng = np.random.default_rng(0)  # the same draws each time: a page must not flicker
    drawn = rng.integers(0, len(right), (DRAWS, more))
    come = np.where(right[drawn] < 0, -1, rng.random(drawn.shape) >= error[drawn])
    sure = np.hstack([np.tile(stated, (DRAWS, 1)), stated[drawn]])
    order = np.argsort(-sure, axis=1)
    known = np.take_along_axis(np.hstack([np.tile(right, (DRAWS, 1)), come]), order, axis=1)
    # Labels of one probability are shown together or not at all, and no price is so high that it
    # hides one which is surer than the target.
    sure = np.take_along_axis(sure, order, axis=1)
    following = np.hstack([sure[:, 1:], np.full((DRAWS, 1), -1.0)])
    ends = (following != sure) & (following < 1 - risk)
    checked, wrong = (known >= 0).cumsum(axis=1), (known == 0).cumsum(axis=1)
    shows = ends & (wrong + 1 <= risk * (checked + 1))
    return bool(shows.any(axis=1).mean() >= 0.5)


def _round(count: int) -> int:
    """Round up to one digit: more would claim to know."""
    one = int(10 ** (len(str(count)) - 1))
    return -(-count // one) * one
