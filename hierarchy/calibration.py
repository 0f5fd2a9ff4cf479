"""Fitting the depth rule, with a certificate, from images the network was not trained on.

Fixed-sequence learn-then-test (Angelopoulos et al., "Learn then Test", 2021): walk from the
strictest setting to looser ones, at each an exact binomial test of "what is shown is less accurate
than the target"; stop at the first that does not reject. Letters: n images, L levels, K settings.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from math import ceil
from typing import Any, Literal, Self

import numpy as np

from hierarchy.depth_selection import (
    EDGE,
    Bools,
    Candidates,
    DepthRule,
    Floats,
    Ints,
    allowed_levels,
    choose_depth,
    logits,
    sigmoid,
)
from hierarchy.metrics.ancestors import judged
from hierarchy.tree import LabelTree

#: Prices tried, strictest first: above the first only the safest level can win, below the last
#: depth always does. Finer steps cost nothing in a fixed sequence, coarser ones cost depth.
PRICES: Floats = np.geomspace(3000.0, 0.5, 600)

#: Least probabilities of a level tried by strict rules, strictest first, even in logit.
THRESHOLDS: Floats = 1 / (1 + np.exp(-np.linspace(12.0, -1.0986, 600)))  # 1 - 6e-6 ... 0.25

#: What showing anything is worth beside its depth, in levels: one image in a hundred more gets a
#: label, for less than a hundredth of a level of mean depth.
BONUS = 0.5

#: Strength of the pull of a level's own slope and its offset towards (1, 0), in images.
PULL = 4.0

#: The same for the weights of the other levels' logits, towards 0.
PULL_ACROSS = 16.0

#: Images drawn at random from which on they alone decide: so many cost a certificate little depth.
DRAWN_ALONE = 100

#: With very few, chance of speaking against a rule that keeps the target.
CONTRADICTION = 0.05

#: How far a rule may loosen from one version to the next, as a share of the way in `PRICES`: what
#: one lucky draw of labels would show, the next version would take back.
LOOSEN = 0.5

#: An image less like the labelled ones than all but this share of those held out is shown nothing:
#: too few of them were as far to say how right a label would be (docs/decisions/0024).
LEAST_LIKE = 0.02

#: A level's weights add up to at least this; less would turn the order of images around.
LEAST_SLOPE = 0.05

Standing = Literal["certified", "estimated", "none"]
#: Of so many checked labels, how many may be wrong; -1 where even none is too many.
Bears = Callable[[Ints], Ints]


@dataclass(frozen=True)
class Evidence:
    """Evidence of held-out images about each level's best node.

    Attributes:
        probability: ``(n, L)`` of each level's best node, before correction.
        right: ``(n, L)`` 1 right, 0 wrong, -1 not known (the annotator's answer is coarser).
        depth: ``(n, L)`` the level of the tree that each of those nodes lies on, 1 for the top;
            None where the levels are the tree's own.
        drawn: ``(n,)`` which images chance chose to be asked about; None where that is not known.
        like: ``(n,)`` likeness to labelled images (`hierarchy.familiarity`); None likewise.
    """

    probability: Floats
    right: Ints
    depth: Ints | None = None
    drawn: Bools | None = None
    like: Floats | None = None

    def __len__(self) -> int:
        return len(self.probability)

    @property
    def at(self) -> Ints:
        """``(n, L)`` the level of the tree that each node lies on."""
        if self.depth is not None:
            return self.depth
        return np.tile(np.arange(1, self.right.shape[1] + 1), (len(self), 1))

    def some(self, rows: Ints | Bools) -> Self:
        """Return the evidence of some of the images."""
        columns = ((one.name, getattr(self, one.name)) for one in fields(self))
        known: dict[str, Any] = {name: None if of is None else of[rows] for name, of in columns}
        return replace(self, **known)

    def joined(self, other: Self) -> Self:
        """Return these images and others; what may not be known is where it is known of both."""
        drawn = self.drawn is not None and other.drawn is not None
        like = self.like is not None and other.like is not None
        return replace(
            self,
            probability=np.concatenate([self.probability, other.probability]),
            right=np.concatenate([self.right, other.right]),
            depth=np.concatenate([self.at, other.at]),
            drawn=np.concatenate([self.drawn, other.drawn]) if drawn else None,
            like=np.concatenate([self.like, other.like]) if like else None,
        )


@dataclass(frozen=True)
class Fitted:
    """A depth rule and what it rests on.

    The figures are of held-out images, each with a correction fitted without it.

    Attributes:
        rule: to be used as it is; its price is None where there is no evidence at all.
        standing: ``certified``, the accuracy of what is shown (of a strict rule: on every level) is
            at least the target with confidence 1 - delta; ``estimated``, with too few images for
            that, only the cautious estimate 1 - (wrong + 1) / (checked + 1) is; ``none``, nothing
            can be shown.
        checked: held-out images whose shown label could be checked.
        wrong: how many of those were wrong.
        given: share of held-out images that get a label.
        mean_depth: over all held-out images, in decision levels, nothing shown counting 0.
        drawn: of ``checked``, how many are of images drawn at random.
        drawn_wrong: how many of those were wrong.
    """

    rule: DepthRule
    standing: Standing
    checked: int
    wrong: int
    given: float
    mean_depth: float
    drawn: int = 0
    drawn_wrong: int = 0

    def to_json(self) -> dict[str, Any]:
        """Plain data for a manifest."""
        return {
            "rule": self.rule.to_json(),
            "standing": self.standing,
            "checked": self.checked,
            "wrong": self.wrong,
            "given": round(self.given, 4),
            "mean_depth": round(self.mean_depth, 3),
            "drawn": self.drawn,
            "drawn_wrong": self.drawn_wrong,
        }


def evidence(found: Candidates, targets: Ints, tree: LabelTree) -> Evidence:
    """Hold each level's best node against the deepest node known for its image.

    A node is right when the target is it or below it, not known when it lies below the target
    (the annotator stopped above), wrong otherwise.
    """
    right = judged(found.nodes, targets[:, None], tree)
    return Evidence(found.probability, right, tree.arrays.levels[found.nodes] + 1)


def fit_platt(seen: Evidence) -> tuple[tuple[float, ...], ...]:
    """Fit for each level a weight for every level's logit, and an offset, by logistic regression.

    Platt's (1999) with the other levels' certainty beside the level's own: a sure leaf makes its
    top node surer still. The penalty pulls towards "leave the probabilities as they are", so that a
    level with few checked images is hardly moved.
    """
    design = _design(seen)
    return tuple(
        tuple(float(number) for number in _fit_level(design, seen.right[:, level], level))
        for level in range(seen.probability.shape[1])
    )


def left_out(seen: Evidence, platt: tuple[tuple[float, ...], ...]) -> Floats:
    """``(n, L)`` probabilities that ``fit_platt`` would state of each image without having it.

    One Newton step from the fit on all (Pregibon 1981; Rad and Maleki 2020), so that a certificate
    does not rest on a correction that has seen the answers. Images with the same probabilities on
    all levels are one image seen several times, and are left out together.
    """
    design = _design(seen)
    _, place, twins = np.unique(design, axis=0, return_inverse=True, return_counts=True)
    place = place.ravel()
    result = np.empty_like(seen.probability)
    for level, row in enumerate(platt):
        known = seen.right[:, level] >= 0
        fit = np.array(row)
        stated = sigmoid(design @ fit)
        spread = stated * (1 - stated)
        inverse = np.linalg.inv(_hessian(design[known], spread[known], level))
        lever = np.einsum("ij,jk,ik->i", design, inverse, design)
        surprise = np.where(known, seen.right[:, level] - stated, 0.0)
        surprise = np.bincount(place, surprise, len(twins))[place]
        count = np.bincount(place, known, len(twins))[place]
        result[:, level] = design @ fit - lever * surprise / (1 - count * lever * spread)
    return sigmoid(result)


def _design(seen: Evidence) -> Floats:
    """``(n, L + 1)`` logits of all levels, and ones."""
    return np.column_stack([logits(seen.probability), np.ones(len(seen))])


def _start(levels: int, level: int) -> tuple[Floats, Floats]:
    """``(L + 1,)`` where a level's fit is pulled to, and how strongly."""
    start, pull = np.zeros(levels + 1), np.full(levels + 1, PULL_ACROSS)
    start[level] = 1.0
    pull[[level, levels]] = PULL
    return start, pull


def _hessian(design: Floats, spread: Floats, level: int) -> Floats:
    pull = _start(design.shape[1] - 1, level)[1]
    result: Floats = (design * spread[:, None]).T @ design + np.diag(pull)
    return result


def _fit_level(design: Floats, right: Ints, level: int) -> Floats:
    known = right >= 0
    design, right = design[known], right[known]
    start, pull = _start(design.shape[1] - 1, level)
    fit = start.copy()
    for _ in range(50):  # Newton; the penalised problem is strictly convex
        stated = sigmoid(design @ fit)
        gradient = design.T @ (stated - right) + pull * (fit - start)
        step = np.linalg.solve(_hessian(design, stated * (1 - stated), level), gradient)
        fit -= step / max(1.0, float(np.abs(step).max()))  # damped: never more than 1 a step
        if np.abs(step).max() < 1e-10:
            break
    fit[level] += max(0.0, LEAST_SLOPE - float(fit[:-1].sum()))
    return fit


def fit_rule(  # noqa: PLR0913 - the evidence, and each choice that a project may make
    seen: Evidence,
    *,
    target: float,
    delta: float = 0.1,
    minimum: int = 1,
    maximum: int | None = None,
    strict: bool = False,
    former: DepthRule | None = None,
) -> Fitted:
    """Fit the loosest rule whose accuracy of shown labels is certified, else cautiously estimated.

    Images drawn at random are the fair sample. Where there are enough of them they alone decide
    (`deciding`); before, nothing may be shown that they speak against.

    A former rule is kept where the evidence bears it, and loosened by half of the way at most.

    Args:
        seen: held-out evidence.
        target: accuracy promised for what is shown, in (0, 1).
        delta: chance that a certificate is wrong.
        minimum: shallowest level of the tree to show.
        maximum: deepest level of the tree to show, None for all.
        strict: the target holds for what is shown on each level separately, not only on average; a
            level that cannot keep it is not shown.
        former: the version before's rule; one that was made for other settings says nothing.

    Raises:
        ValueError: ``target`` or ``delta`` outside (0, 1).
    """
    seen = deciding(seen, target, delta)
    rule = DepthRule(
        target,
        None,
        fit_platt(seen),
        minimum,
        maximum,
        0.0 if strict else BONUS,
        (None,) * seen.right.shape[1] if strict else None,
        LEAST_LIKE,
    )
    if not len(seen):
        return Fitted(rule, "none", 0, 0, 0.0, 0.0)
    sure, before = left_out(seen, rule.platt), _comparable(former, rule)
    # Bonferroni: each level of a strict rule has a walk of its own.
    each = delta / max(1, len(rule.platt)) if strict else delta
    certified = _loosest(seen, sure, rule, lambda n: _certain(n, 1 - target, each), former=before)
    if certified is not None:
        return replace(tried(seen, sure, certified), standing="certified")
    found = estimate(seen, sure, rule, former=before, anywhere=True)
    return found or Fitted(rule, "none", 0, 0, 0.0, 0.0)


def deciding(seen: Evidence, target: float, delta: float = 0.1) -> Evidence:
    """Return the images that a rule is fitted to: those drawn at random alone, if they are enough.

    They are from ``DRAWN_ALONE`` on, if a certificate bears two errors among that many.

    Raises:
        ValueError: ``target`` or ``delta`` outside (0, 1).
    """
    if not 0 < target < 1 or not 0 < delta < 1:
        raise ValueError(f"target and delta must lie in (0, 1), got {target} and {delta}")
    drawn = np.array(0 if seen.drawn is None else seen.drawn.sum())
    if drawn < DRAWN_ALONE or _certain(drawn, 1 - target, delta) < 2:
        return seen
    return seen.some(seen.drawn)  # type: ignore[arg-type]  # there are some


def _comparable(former: DepthRule | None, rule: DepthRule) -> float | None:
    """The former rule's price, where it was made for the same settings."""
    if former is None or former.strict or rule.strict:
        return None
    asked = ("target", "minimum", "maximum", "bonus")
    same = all(getattr(former, name) == getattr(rule, name) for name in asked)
    return former.price if same else None


def estimate(
    seen: Evidence,
    sure: Floats,
    rule: DepthRule,
    *,
    former: float | None = None,
    anywhere: bool = False,
) -> Fitted | None:
    """Fit the loosest rule of the same kind whose cautious estimate of being wrong is small enough.

    Args:
        seen: what is known of each image.
        sure: ``(n, L)`` corrected probabilities.
        rule: its target, limits and kind are kept, its price or thresholds replaced.
        former: the version before's price, see `fit_rule`.
        anywhere: of a price: also beyond one whose estimate is too high. A certificate may not look
            there, but the strictest prices show so few of few images that one error ends the walk.

    Returns:
        None where nothing can be shown.
    """
    found = _loosest(
        seen,
        sure,
        rule,
        lambda checked: _cautious(checked, 1 - rule.target),
        former=former,
        anywhere=anywhere,
        powerful=False,
    )
    return None if found is None else tried(seen, sure, found)


def tried(seen: Evidence, sure: Floats, rule: DepthRule) -> Fitted:
    """Return what a rule would have shown, given the ``(n, L)`` corrected probabilities."""
    depth = choose_depth(sure, rule, seen.at, seen.like)
    shown = depth > 0
    right = seen.right[np.arange(len(seen)), np.maximum(depth - 1, 0)]
    checked = shown & (right >= 0)
    drawn = checked & seen.drawn if seen.drawn is not None else np.zeros(len(seen), dtype=bool)
    return Fitted(
        rule,
        "estimated",
        int(checked.sum()),
        int((checked & (right == 0)).sum()),
        float(shown.mean()),
        float(depth.mean()),
        int(drawn.sum()),
        int((drawn & (right == 0)).sum()),
    )


@dataclass(frozen=True)
class Preview:
    """Depths shown under a target, of images like the held-out ones.

    Attributes:
        target: accuracy asked for.
        standing: what could be promised, as `Fitted` says.
        depths: share of images answered on each level of the tree, 0 (nothing) first; they add
            up to 1.
        checked: held-out images whose label could be checked.
        wrong: how many of those were wrong.
        mean_depth: over all images, in decision levels, nothing shown counting 0.
        levels: levels of the tree that leave a choice, ascending.
    """

    target: float
    standing: Standing
    depths: tuple[float, ...]
    checked: int
    wrong: int
    mean_depth: float
    levels: tuple[int, ...]

    @property
    def given(self) -> float:
        """Share of images that get a label."""
        return 1 - self.depths[0]

    def to_json(self) -> dict[str, Any]:
        """Plain data for a page."""
        return {
            "target": self.target,
            "standing": self.standing,
            "given": round(self.given, 4),
            "mean_depth": round(self.mean_depth, 3),
            "depths": [round(share, 4) for share in self.depths],
            "checked": self.checked,
            "wrong": self.wrong,
        }


def preview(
    seen: Evidence,
    *,
    target: float,
    minimum: int = 1,
    maximum: int | None = None,
    strict: bool = False,
) -> Preview:
    """Return the share shown at each depth under another target or other limits.

    Raises:
        ValueError: ``target`` outside (0, 1).
    """
    seen = deciding(seen, target)
    fitted = fit_rule(seen, target=target, minimum=minimum, maximum=maximum, strict=strict)
    shown = np.zeros(0, dtype=np.int64)
    if len(seen):
        depth = choose_depth(left_out(seen, fitted.rule.platt), fitted.rule, seen.at, seen.like)
        at = np.hstack([np.zeros((len(seen), 1), dtype=np.int64), seen.at])
        shown = at[np.arange(len(seen)), depth]
    there = tuple(np.unique(seen.at).tolist()) or tuple(range(1, seen.right.shape[1] + 1))
    counts: Floats = np.bincount(shown, minlength=max(there, default=0) + 1) / max(1, len(shown))
    counts[0] += not len(shown)  # of no images, nothing is shown
    shares = tuple(float(share) for share in counts)
    return Preview(
        target, fitted.standing, shares, fitted.checked, fitted.wrong, fitted.mean_depth, there
    )


def _loosest(  # noqa: PLR0913 - the evidence, what is demanded of it, and where to look
    seen: Evidence,
    sure: Floats,
    rule: DepthRule,
    bears: Bears,
    *,
    former: float | None = None,
    anywhere: bool = False,
    powerful: bool = True,
) -> DepthRule | None:
    """Return the loosest rule of the same kind that the evidence bears; None if it bears none."""
    if rule.thresholds is not None:
        return _loosest_thresholds(seen, sure, rule, bears, powerful=powerful)
    return _loosest_price(seen, sure, rule, bears, former=former, anywhere=anywhere)


def _loosest_price(  # noqa: PLR0913 - the evidence, what is demanded of it, and where to look
    seen: Evidence,
    sure: Floats,
    rule: DepthRule,
    bears: Bears,
    *,
    former: float | None = None,
    anywhere: bool = False,
) -> DepthRule | None:
    checked, wrong = _price_counts(seen, sure, rule)
    most = bears(checked)
    if seen.drawn is not None:
        fair = _price_counts(seen.some(seen.drawn), sure[seen.drawn], rule)
        most = np.where(_unfair(*fair, 1 - rule.target), -1, most)
    if anywhere:
        borne = np.flatnonzero(wrong <= most)
        last = int(borne[-1]) if len(borne) else None
    else:
        last = _walk(checked, wrong, bears(checked), most)
    if former is not None:
        before = int(np.abs(np.log(PRICES / former)).argmin())
        if wrong[before] <= most[before] and (last is None or last < before):
            last = before
        elif last is not None and last > before:
            half = before + ceil(LOOSEN * (last - before))
            last = half if wrong[half] <= most[half] else last
    return None if last is None else replace(rule, price=float(PRICES[last]))


def _unfair(checked: Ints, wrong: Ints, risk: float) -> Bools:
    """Tell whether images drawn at random speak against a rule, ``(K,)``.

    Where two of them may be wrong they must pass the cautious estimate too; fewer speak against it
    only where so many are wrong that the target can hardly hold.
    """
    from scipy.stats import binom  # see `_certain`

    most = _cautious(checked, risk)
    hardly = binom.sf(wrong - 1, checked, risk) <= CONTRADICTION
    result: Bools = np.where(most >= 2, wrong > most, hardly)
    return result


def _price_counts(seen: Evidence, sure: Floats, rule: DepthRule) -> tuple[Ints, Ints]:
    """``(K,)`` how many shown labels each price leaves to check, and how many are wrong.

    What a level is worth falls in a straight line with the price, so each image shows each level
    between two prices, which follow from comparing levels two by two.
    """
    low, high = _price_ranges(seen, sure, rule)
    return _counted(low, high, seen.right >= 0), _counted(low, high, seen.right == 0)


def _counted(low: Floats, high: Floats, which: Bools) -> Ints:
    """``(K,)`` at each price, how many of ``which`` are shown: those with low <= price < high."""
    which = which & (low < high)
    rising = PRICES[::-1]
    change = np.bincount(np.searchsorted(rising, low[which]), minlength=len(rising) + 1)
    change -= np.bincount(np.searchsorted(rising, high[which]), minlength=len(rising) + 1)
    result: Ints = change.cumsum()[-2::-1].astype(np.int64)
    return result


def _price_ranges(seen: Evidence, sure: Floats, rule: DepthRule) -> tuple[Floats, Floats]:
    """``(n, L)`` prices from which on, and below which, each level is what is shown."""
    allowed = allowed_levels(sure, rule, seen.at, seen.like)
    low, high = np.zeros_like(sure), np.full_like(sure, np.inf)
    with np.errstate(divide="ignore", invalid="ignore"):
        for level in range(sure.shape[1]):
            p = sure[:, level]
            high[:, level] = np.where(
                p < rule.target, (level + 1 + rule.bonus) / (rule.target - p), np.inf
            )
            for other in range(sure.shape[1]):
                ahead = p - sure[:, other]
                even = (other - level) / ahead  # the price at which both are worth the same
                if other > level:
                    low[:, level] = np.fmax(
                        low[:, level],
                        np.where(allowed[:, other], np.where(ahead > 0, even, np.inf), 0.0),
                    )
                elif other < level:
                    high[:, level] = np.fmin(
                        high[:, level], np.where(allowed[:, other] & (ahead < 0), even, np.inf)
                    )
    low[~allowed] = np.inf
    return low, high


def _loosest_thresholds(
    seen: Evidence, sure: Floats, rule: DepthRule, bears: Bears, *, powerful: bool = False
) -> DepthRule | None:
    """Each level's own walk, the deepest first, over the images that are shown nothing deeper."""
    left, right = allowed_levels(sure, rule, seen.at, seen.like), seen.right
    found: list[float | None] = []
    for level in reversed(range(sure.shape[1])):
        p = sure[:, level]
        known = left[:, level] & (right[:, level] >= 0)
        order = np.sort(-p[known])
        checked = np.searchsorted(order, -THRESHOLDS, side="right")
        wrong = np.searchsorted(np.sort(-p[known & (right[:, level] == 0)]), -THRESHOLDS, "right")
        expected = np.concatenate([[0.0], (1 + order).cumsum()])[checked]
        most = bears(checked)
        if seen.drawn is not None:
            fair = known & seen.drawn
            counts = [
                np.searchsorted(np.sort(-p[which]), -THRESHOLDS, side="right")
                for which in (fair, fair & (right[:, level] == 0))
            ]
            most = np.where(_unfair(counts[0], counts[1], 1 - rule.target), -1, most)
        last = _walk(checked, wrong, bears(checked), most, expected if powerful else None)
        found.insert(0, None if last is None else float(THRESHOLDS[last]))
        if last is not None:
            left[p >= THRESHOLDS[last]] = False
    shown = any(least is not None for least in found)
    return replace(rule, price=0.0, thresholds=tuple(found)) if shown else None


def _certain(checked: Ints, risk: float, delta: float) -> Ints:
    """Return the most errors with which "wrong at least ``risk`` of the time" is rejected."""
    from scipy.stats import binom  # a second, which a server that only answers need not spend

    most = binom.ppf(delta, checked, risk)
    result: Ints = np.where(binom.cdf(most, checked, risk) <= delta, most, most - 1).astype(
        np.int64
    )
    return result


def _cautious(checked: Ints, risk: float) -> Ints:
    """Return the most errors with which (wrong + 1) / (checked + 1) is at most ``risk``."""
    result: Ints = np.floor(risk * (checked + 1) + EDGE).astype(np.int64) - 1  # 1 - 0.9 < 0.1
    return result


def _walk(
    checked: Ints, wrong: Ints, most: Ints, borne: Ints, expected: Floats | None = None
) -> int | None:
    """The last setting that passes before the first that fails, from where passing is possible.

    The start is chosen by how many images are *shown*, and by how many errors their probabilities
    foretell, never by how many are wrong, as the method demands.

    Args:
        checked: ``(K,)`` labels that could be checked, at each setting from the strictest on.
        wrong: ``(K,)`` how many of them are wrong.
        most: ``(K,)`` how many may be, by which the start is chosen.
        borne: ``(K,)`` how many may be, -1 where images drawn at random speak against it.
        expected: ``(K,)`` how many errors are foretold: the walk then begins where it is least
            likely to end; None for where two errors pass.
    """
    if expected is not None:
        from scipy.stats import poisson  # see `_certain`

        start = int(np.argmax(poisson.cdf(most, expected)))
    elif (most >= 2).any():
        start = int((most >= 2).argmax())
    else:  # too few images for two errors: the longest list there is, without error
        start = int(checked.argmax())
    failed = wrong[start:] > borne[start:]
    last = start + int(failed.argmax() if failed.any() else len(failed)) - 1
    return last if last >= start else None
