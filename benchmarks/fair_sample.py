"""What answers that chance chose are worth where the others are no fair sample.

    python -m benchmarks.fair_sample

Drawn data: images of two kinds, of which one is right more often than its stated probability says
and the other less often. All answers but one in twenty are asked about by kind, as an order may do;
the rule is fitted with and without knowing which ones were drawn at random, and judged on the whole
project. No photos, some seconds.
"""

import argparse
from typing import Final

import numpy as np

from hierarchy.calibration import Evidence, fit_rule
from hierarchy.depth_selection import choose_depth, corrected, logits

#: Log-odds by which one kind is right more often, the other less often, than is stated.
DISTANCE: Final = 0.8

#: Images of the project on which a rule is judged.
WHOLE: Final = 10_000


def images(
    rng: np.random.Generator, count: int, good: float
) -> tuple[Evidence, np.ndarray[tuple[int, ...], np.dtype[np.float64]]]:
    """So many images, a share of them of the good kind, and how probably each label is right."""
    steps = np.stack([rng.beta(a, 1, count) for a in (12, 4)], axis=1)
    stated = np.cumprod(steps, axis=1)
    sign = np.where(rng.random(count) < good, 1.0, -1.0)[:, None]
    truth = 1 / (1 + np.exp(-(logits(stated) + DISTANCE * sign)))
    truth = np.minimum.accumulate(truth, axis=1)
    right = (rng.random((count, 1)) < truth).astype(np.int64)
    return Evidence(stated, right), truth


def judged(answers: int, good: float, *, known: bool, seed: int) -> tuple[float, float, float]:
    """Stated and true accuracy of what is shown, and the share shown, after so many answers."""
    rng = np.random.default_rng(seed)
    chance = max(1, answers // 20)
    asked, fair = images(rng, answers - chance, good)[0], images(rng, chance, 0.5)[0]
    seen = Evidence(
        np.concatenate([asked.probability, fair.probability]),
        np.concatenate([asked.right, fair.right]),
        drawn=np.arange(answers) >= answers - chance if known else None,
    )
    fitted = fit_rule(seen, target=0.9)
    whole, truth = images(rng, WHOLE, 0.5)
    depth = choose_depth(corrected(whole.probability, fitted.rule.platt), fitted.rule)
    shown = depth > 0
    right = truth[shown, depth[shown] - 1].mean() if shown.any() else 1.0
    stated = 1 - fitted.wrong / fitted.checked if fitted.checked else 1.0
    return stated, float(right), float(shown.mean())


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=40)
    seeds = parser.parse_args().seeds
    print("| answers | of the good kind | drawn known | stated | true | target kept | given |")
    print("|---:|---:|---|---:|---:|---:|---:|")
    for answers in (80, 300, 1000, 4000):
        for good in (0.2, 0.5, 0.8):
            for known in (False, True):
                rows = [judged(answers, good, known=known, seed=seed) for seed in range(seeds)]
                stated, true, given = np.mean(rows, axis=0)
                kept = np.mean([row[1] >= 0.9 for row in rows])
                print(
                    f"| {answers:,} | {good:.0%} | {'yes' if known else 'no'} | {stated:.1%} | "
                    f"{true:.1%} | {kept:.0%} | {given:.0%} |"
                )


if __name__ == "__main__":
    main()
