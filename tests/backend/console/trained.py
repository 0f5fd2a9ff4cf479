"""A version that was really trained, on pictures of a real server, in seconds."""

from collections.abc import Sequence

from hierarchy import LabelTree
from inference.store import Project
from studio.annotations import Label, TaskLabels
from studio.label_config import parse_label_config
from tests.backend.conftest import jpeg
from tests.published import project
from tests.studio.configs import taxonomy_xml, tree_of
from tests.studio.image_server import ImageServer
from worker import training
from worker.order import Order
from worker.parts import Parts
from worker.snapshot import take
from worker.training_config import TrainingConfig

HOSTILE = "<script>alert(1)</script>"

#: Four leaves that are labelled, one of a hostile name, and one that nobody ever names.
TREE = tree_of(
    [
        ("Fruit", "Apple"),
        ("Fruit", "Pear"),
        (HOSTILE, "<b>bold</b>"),
        (HOSTILE, "plain"),
        ("Milk",),
    ]
)

#: Nodes that labels name, in turn; the top of the hostile ones is a coarse answer.
NAMED = (("Fruit", "Apple"), ("Fruit", "Pear"), (HOSTILE, "<b>bold</b>"), (HOSTILE,))

PICTURES = 24

QUICK = TrainingConfig(augmentations=(0,), members=1, hidden=8, epochs=2, least_shown=240, folds=3)


def train(
    parts: Parts,
    pictures: ImageServer,
    number: int,
    *,
    count: int = PICTURES,
    tree: LabelTree = TREE,
    named: Sequence[tuple[str, ...]] = NAMED,
) -> Project:
    """A project of this number, whose next version has learnt so many labels."""
    for seed in range(PICTURES):
        pictures.answers.setdefault(f"/data/upload/9/{seed}.jpg", jpeg(seed))
    xml = taxonomy_xml(tree)
    config = parse_label_config(xml)
    known = parts.store.register(
        project(parts.settings.label_studio_url, f"{number}.1795440233", xml)
    )
    tasks = []
    for at in range(count):
        node = config.tree.index(named[at % len(named)])
        when = f"2026-11-23T14:00:{at:02d}.000001Z"
        label = Label(at, at, node, (node,), 7, when, False, None, None)  # noqa: FBT003
        tasks.append(TaskLabels(at, f"/data/upload/9/{at}.jpg", (label,), (), {}))
    order = Order(known.key, "test", force=True, fine_tune=False)
    ended = training.learn(order, known, config, take(tasks, config.tree), parts, _silent)
    assert ended.version is not None
    parts.store.point(known.key, ended.version, reason="test")
    return known


def _silent(stage: str, done: int, total: int, **figures: float) -> None:
    """Nobody listens."""
