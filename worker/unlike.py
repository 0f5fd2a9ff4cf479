"""Open images that look unlike the labelled ones: how many, under which nodes, and what to say.

The pre-label sync reads all open images anyway. It notes for each what it takes it for and whether
it is unlike; a later sync that looks at a few images replaces those alone.
"""

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from hierarchy.familiarity import (
    FALSE_ALARM,
    LEAST_OPEN,
    USUAL,
    Familiarity,
    more_than_usual,
)
from inference.predictor import Answer
from worker.parts import Parts

Path = tuple[str, ...]


@dataclass(frozen=True)
class Looked:
    """Each open image's best leaf, and whether it looks unlike the labelled ones.

    Attributes:
        leaf: by task, the best leaf.
        unlike: tasks whose image does.
    """

    leaf: Mapping[int, Path]
    unlike: frozenset[int]

    def updated(self, answers: Mapping[int, Answer], still_open: Collection[int]) -> Self:
        """Return the same with new answers, and without tasks that are open no more."""
        leaf = {**self.leaf, **{task: answer.leaf for task, answer in answers.items()}}
        unlike = self.unlike - answers.keys()
        unlike |= {task for task, answer in answers.items() if answer.like < USUAL}
        still = set(still_open)
        return type(self)(
            {task: path for task, path in leaf.items() if task in still}, frozenset(unlike & still)
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain data; each leaf's path is written once."""
        paths = sorted(set(self.leaf.values()))
        number = {path: at for at, path in enumerate(paths)}
        return {
            "paths": paths,
            "leaf": [[task, number[path]] for task, path in sorted(self.leaf.items())],
            "unlike": sorted(self.unlike),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read what ``to_json`` wrote."""
        paths = [tuple(path) for path in data["paths"]]
        leaf = {int(task): paths[at] for task, at in data["leaf"]}
        return cls(leaf, frozenset(data["unlike"]))


@dataclass(frozen=True)
class Share:
    """Count of open images taken for a node, and of those unlike the labelled ones.

    Attributes:
        path: the node; empty for the whole tree.
        open: images.
        unlike: how many of them.
    """

    path: Path
    open: int
    unlike: int


@dataclass(frozen=True)
class Unlike:
    """Comparison of open images with those that were labelled.

    Attributes:
        open: images that were looked at.
        unlike: how many of them look unlike.
        usual: the share that would be usual.
        more: whether that is more than chance explains.
        most: the deepest node that more than half of the unlike ones are taken for; empty for none.
        nodes: nodes under which more than chance explains do, the highest share first.
    """

    open: int
    unlike: int
    usual: float
    more: bool
    most: Path
    nodes: tuple[Share, ...]

    @property
    def words(self) -> str:
        """What to tell people, a sentence without its full stop; empty where all is as usual."""
        usual = f"({self.usual:.0%} would be usual)"
        fix = "label some of them; the stated accuracy does not hold there"
        if self.more:
            most = f", most under {' > '.join(self.most)}" if self.most else ""
            share = self.unlike / self.open
            return (
                f"{share:.0%} of the open images look unlike those that were labelled {usual}"
                f"{most}: {fix}"
            )
        if self.nodes:
            worst = self.nodes[0]
            return (
                f"{worst.unlike / worst.open:.0%} of the open images taken for "
                f"{' > '.join(worst.path)} look unlike those that were labelled {usual}: {fix}"
            )
        return ""

    def to_json(self) -> dict[str, Any]:
        """Return plain data, with the words."""
        return {**asdict(self), "words": self.words}


def count_unlike(looked: Looked, known: Familiarity) -> Unlike:
    """Count open images that look unlike the labelled ones, and test whether that is usual.

    The nodes share the chance of a false alarm (Bonferroni).
    """
    held_out = len(known.distances)
    shares = _shares(looked)
    total = shares.pop((), Share((), 0, 0))
    tested = [one for one in shares.values() if one.open >= LEAST_OPEN]
    nodes = [
        one
        for one in tested
        if more_than_usual(one.unlike, one.open, held_out, chance=FALSE_ALARM / len(tested))
    ]
    nodes.sort(key=lambda one: (-one.unlike / one.open, one.path))
    half = [one.path for one in shares.values() if 2 * one.unlike > total.unlike]
    more = more_than_usual(total.unlike, total.open, held_out)
    most = max(half, key=len, default=())
    return Unlike(total.open, total.unlike, USUAL, more, most, tuple(nodes))


def _shares(looked: Looked) -> dict[Path, Share]:
    """Return the share of every node that some image is taken for, and of the whole tree."""
    seen, unlike = Counter[Path](), Counter[Path]()
    for task, path in looked.leaf.items():
        above = [path[:depth] for depth in range(len(path) + 1)]
        seen.update(above)
        if task in looked.unlike:
            unlike.update(above)
    return {path: Share(path, count, unlike[path]) for path, count in seen.items()}


def unlike(parts: Parts, key: str, version: str | None) -> dict[str, Any] | None:
    """Return what the last pre-label sync said of open images, as `Unlike.to_json` has it.

    Raises:
        RedisError: it is away.
    """
    noted = None if version is None else parts.board.unlike(key, version)
    said: dict[str, Any] | None = None if noted is None else noted["told"]
    return said
