"""May a new version take the live one's place? Only images neither was trained on may say so.

Three questions: is it right as often on images labelled since; is it right as often as each of the
versions before on images that both held out, and on those among them drawn at random; and would it
pre-label as many images as deep. Letters: n images.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import binomtest
from torch import Tensor

from hierarchy.calibration import Evidence, Fitted
from inference.predictor import EVIDENCE, read_evidence

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]

#: With fewer images than this a comparison says nothing.
LEAST = 10

#: Chance of refusing a version that is as good.
DELTA = 0.05

#: Versions before that a new one is compared with.
RECENT = 5

#: Share of images that may lose their pre-label, and levels of mean depth that may be lost, until a
#: version is refused. Versions that are as good differ by less (docs/results.md).
LESS_SHOWN = 0.12
LESS_DEEP = 0.25

#: With fewer images than this nothing is said of that.
LEAST_SHOWN = 50

#: Fewer images than this are called few.
FEW = 100


@dataclass(frozen=True)
class Verdict:
    """Decision whether the new version may go live, and why in words."""

    passed: bool
    why: str


@dataclass(frozen=True, eq=False)
class HeldOut:
    """A version's answers on images that it was not trained on.

    Attributes:
        marks: ``(n,)`` which images.
        truth: ``(n,)`` the node that the annotators named.
        right: ``(n,)`` was the best node of that node's level the node?
        seen: what they say of each level's best node, and which were drawn at random.
    """

    marks: Ints
    truth: Ints
    right: Bools
    seen: Evidence

    def __len__(self) -> int:
        return len(self.marks)

    @property
    def drawn(self) -> Bools:
        """``(n,)`` which images were drawn at random."""
        none = np.zeros(len(self), dtype=bool)
        return none if self.seen.drawn is None else self.seen.drawn

    def drawn_figures(self) -> dict[str, int]:
        """Return how many images were drawn at random, and how many of those were right."""
        return {"checked": int(self.drawn.sum()), "right": int(self.right[self.drawn].sum())}

    def some(self, rows: Ints) -> "HeldOut":
        """Return some of the images."""
        return HeldOut(self.marks[rows], self.truth[rows], self.right[rows], self.seen.some(rows))

    def shared_with(self, other: "HeldOut") -> tuple["HeldOut", "HeldOut"]:
        """Return the images, in one order, that both held out and that are labelled alike."""
        _, ours, theirs = np.intersect1d(self.marks, other.marks, return_indices=True)
        alike = self.truth[ours] == other.truth[theirs]
        return self.some(ours[alike]), other.some(theirs[alike])

    def joined(self, other: "HeldOut") -> "HeldOut":
        """Return these images and others."""
        return HeldOut(
            np.concatenate([self.marks, other.marks]),
            np.concatenate([self.truth, other.truth]),
            np.concatenate([self.right, other.right]),
            self.seen.joined(other.seen),
        )

    def to_tensors(self) -> dict[str, Tensor]:
        """Return what a version's file holds beside the evidence."""
        tensors = {"marks": self.marks, "right_as_named": self.right, "drawn": self.drawn}
        return {f"{EVIDENCE}{name}": torch.from_numpy(one) for name, one in tensors.items()}


def read_held_out(tensors: Mapping[str, Tensor]) -> HeldOut | None:
    """Read what a version's file holds; None for an earlier release's."""
    seen = read_evidence(tensors)
    names = [f"{EVIDENCE}{name}" for name in ("marks", "truth", "right_as_named")]
    if seen is None or any(name not in tensors for name in names):
        return None
    marks, truth, right = (tensors[name].numpy() for name in names)
    return HeldOut(marks, truth.astype(np.int64), right, seen)


def decide(  # noqa: PLR0913 - both versions, and on what grounds
    new: HeldOut,
    since: HeldOut,
    live: str,
    others: Mapping[str, HeldOut],
    fit_rule: Callable[[Evidence], Fitted],
    *,
    force: bool,
) -> Verdict:
    """Decide whether a new version may go live.

    Args:
        new: the new version's answers on images that it held out.
        since: the live version's answers on those of them that it was not trained on either.
        live: the live version's name.
        others: what each of the versions that were live last held out.
        fit_rule: fits a depth rule under the settings of now.
        force: a person asked, and takes fewer or shallower pre-labels.
    """
    if len(since) < LEAST and live in others:
        verdict = compare_held_out(new, others[live], live)
    else:
        ours, theirs = new.shared_with(since)
        verdict = compare(ours.right, theirs.right, live)
    held = (compare_held_out(new, one, name) for name, one in others.items())
    verdict = next((one for one in (verdict, *held) if not one.passed), verdict)
    if not verdict.passed or live not in others:
        return verdict
    # By their answers alone: which images are unlike the labelled ones is not what they differ in.
    ours, theirs = (
        replace(one, seen=replace(one.seen, like=None))
        for one in new.shared_with(others[live].joined(since))
    )
    shown = compare_shown(fit_rule(ours.seen), fit_rule(theirs.seen), len(ours), live)
    if not shown.passed and not force:
        return shown
    by_hand = "" if shown.passed else "asked for by hand, so it goes live although "
    return replace(verdict, why=f"{verdict.why}; {by_hand}{shown.why}".removesuffix("; "))


def compare(new_right: Bools, live_right: Bools, live: str) -> Verdict:
    """Compare by McNemar's exact one-sided test, on images labelled since the live version.

    The live version has not seen them, and the new version's answers come from cross-fitting. What
    remains in the live one's favour is that annotators saw its pre-labels.

    Args:
        new_right: ``(n,)`` was the new version right at the level the annotator named?
        live_right: ``(n,)`` the same of the live version.
        live: its name.
    """
    if len(new_right) < LEAST:
        why = f"only {len(new_right)} images are new since {live}: not compared"
        return Verdict(passed=True, why=why)
    return _held_against(new_right, live_right, f"{live} on images labelled since")


def compare_held_out(new: HeldOut, former: HeldOut, name: str) -> Verdict:
    """Compare by the same test on images that both held out, and on those drawn at random.

    Each version is compared with several before it, so a slide that is too slow for any one step
    shows. The former one had fewer labels to learn from, which is in the new one's favour.
    """
    ours, theirs = new.shared_with(former)
    verdict = Verdict(passed=True, why=f"nothing to compare with {name}")
    for where, which in (
        ("images drawn at random", ours.drawn),
        ("images that both held out", np.ones(len(ours), dtype=bool)),
    ):
        if verdict.passed and which.sum() >= LEAST:
            verdict = _held_against(ours.right[which], theirs.right[which], f"{name} on {where}")
    return verdict


def _held_against(new: Bools, former: Bools, whose: str) -> Verdict:
    checked = len(new)
    won, lost = int((new & ~former).sum()), int((former & ~new).sum())
    why = (
        f"{int(new.sum())} of {checked} right against {int(former.sum())} of {checked} for {whose}"
    )
    if lost <= won:
        return Verdict(passed=True, why=why)
    if binomtest(lost, lost + won, 0.5, alternative="greater").pvalue < DELTA:
        return Verdict(passed=False, why=f"{why}: worse by more than chance explains")
    close = "few" if checked < FEW else "close"
    return Verdict(passed=True, why=f"{why}: too {close} to tell apart, so the newer one goes live")


def compare_shown(new: Fitted, former: Fitted, checked: int, name: str) -> Verdict:
    """Compare whether annotators would get fewer or shallower pre-labels.

    Args:
        new: the new version's depth rule, fitted on some images that it held out.
        former: the other version's, fitted again on the same images with the same settings: its
            published rule may owe its depth to luck.
        checked: how many images those are.
        name: the other version's.
    """
    if checked < LEAST_SHOWN:
        return Verdict(passed=True, why="")
    shown = (
        f"it would pre-label {100 * new.given:.0f} of 100 images, "
        f"{name} {100 * former.given:.0f} of 100"
    )
    deep = (
        f"its pre-labels would be {new.mean_depth:.2f} levels deep on average, "
        f"those of {name} {former.mean_depth:.2f}"
    )
    if former.given - new.given > LESS_SHOWN:
        return Verdict(passed=False, why=shown)
    if former.mean_depth - new.mean_depth > LESS_DEEP:
        return Verdict(passed=False, why=deep)
    return Verdict(passed=True, why=shown)
