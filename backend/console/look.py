"""/console/projects/<key>/look: one picture, what the version says of it, and where it looked."""

import base64
import hashlib
from contextlib import closing
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

from flask import request
from flask.typing import ResponseReturnValue

from backend.console.blueprint import bp
from backend.console.guards import LARGER
from backend.console.layout import page, plain, the_project
from backend.console.picking import asked_version
from backend.services import services
from hierarchy import LabelTree
from inference.errors import ModelError
from inference.insight import Step
from inference.saliency import Sight, as_jpeg, framed, in_words, look, overlaid
from inference.store import Project
from studio.errors import ImageError, StudioError
from studio.image_fetcher import FetchedImage
from studio.label_config import LabelConfig
from worker.errors import JobError

#: Largest file that is taken, in bytes.
MOST_BYTES: Final = 16 * 1024 * 1024
LARGER["console.look_at"] = MOST_BYTES + 64 * 1024  # the form around it

#: Seconds that a look waits for its turn: predictions for annotators go first.
PATIENCE: Final = 20.0


class LookError(Exception):
    """A picture that cannot be looked at; the message says why, for people."""


@dataclass(frozen=True)
class Panel:
    """The heat of one node on the way down.

    Attributes:
        level: 1 for the top.
        path: the node, from the top.
        words: how likely it is.
        source: the picture, as a data address.
        anything: whether anything speaks for the node at all.
    """

    level: int
    path: tuple[str, ...]
    words: str
    source: str
    anything: bool


@bp.get("/projects/<key>/look", endpoint="look")
def look_page(key: str) -> ResponseReturnValue:
    """The form; with ``task`` in the query, that task's picture."""
    project = the_project(key)
    task = request.args.get("task", "").strip()[:20]
    return _page(project, task=task) if task else _page(project)


@bp.post("/projects/<key>/look")
def look_at(key: str) -> ResponseReturnValue:
    """Look at an uploaded file; nothing of it is kept but its features.

    Answers:
        413: it is too large.
    """
    project = the_project(key)
    file = request.files.get("picture")
    if file is None:
        return _page(project, data=b"")
    with closing(file):  # large ones are on the disk
        return _page(project, data=file.read(MOST_BYTES + 1), name=str(file.filename or "")[:200])


def _page(
    project: Project, *, task: str = "", data: bytes | None = None, name: str = ""
) -> ResponseReturnValue:
    names, live, version = asked_version(project)
    words: dict[str, Any] = {
        "title": "Look",
        "project": project,
        "names": names,
        "live": live,
        "version": version,
        "task": task,
        "name": name,
        "most": MOST_BYTES,
    }
    if version is None or not (task or data is not None):
        return page("look", **words)
    try:
        config = services().label_config(project.label_config)
        picture = _of_task(project, config, task) if data is None else _of_file(data)
        sight = _seen(project, version, config, picture)
    except (LookError, ImageError, StudioError, ModelError, JobError) as error:
        status = HTTPStatus.UNPROCESSABLE_ENTITY
        return page("look", status=status, problem=plain(str(error)), **words)
    tree = config.tree
    return page(
        "look",
        sight=sight,
        steps=[_step(tree, step) for step in sight.steps],
        above=["", *(names[-1] for names in (level.path for level in sight.looked.levels))],
        source=_source(as_jpeg(framed(sight.looked.image, sight.looked.part))),
        panels=_panels(sight),
        **words,
    )


def _of_task(project: Project, config: LabelConfig, task: str) -> FetchedImage:
    """The picture of a task of this project.

    Raises:
        LookError: there is no such task here.
        StudioError: Label Studio or the picture's own server did not give it.
    """
    if not task.isascii() or not task.isdecimal():
        raise LookError("A task's number is a whole number, as in Label Studio's list of tasks.")
    parts = services().parts
    told = parts.studio.task(int(task))
    if told.get("project") != project.number:
        raise LookError(f"Task {task} belongs to another project.")
    data = told.get("data")
    ref = config.image_address(data if isinstance(data, dict) else {})
    if ref is None:
        raise LookError(f"The data of task {task} names no picture in {config.image_key!r}.")
    return parts.fetcher.fetch(ref, task_id=int(task))


def _of_file(data: bytes) -> FetchedImage:
    if not data:
        raise LookError("Choose a picture file first.")
    if len(data) > MOST_BYTES:
        raise LookError(f"The file is larger than {MOST_BYTES // 2**20} MB.")
    return FetchedImage(hashlib.sha256(data).hexdigest(), data)


def _seen(project: Project, version: str, config: LabelConfig, picture: FetchedImage) -> Sight:
    """Look, with the predictor that answers `/predict`; a few at a time."""
    own = services()
    if not own.looks.acquire(timeout=PATIENCE):
        raise LookError("Too many pictures are being looked at now. Try again in a moment.")
    try:
        predictor = own.parts.predictors.get(project, version, config.tree)
        return look(predictor, own.parts.extractors.of(predictor), picture)
    finally:
        own.looks.release()


def _step(tree: LabelTree, step: Step) -> dict[str, Any]:
    """Names, probabilities and whether on the path, likeliest first; and what is left."""
    twigs = [(tree.names[twig.node], twig.probability, twig.on_path) for twig in step.twigs]
    return {"twigs": twigs, "others": step.others, "other": step.other, "none": step.none}


def _panels(sight: Sight) -> list[Panel]:
    seen, panels = sight.looked, []
    for number, level in enumerate(seen.levels, start=1):
        laid = framed(overlaid(seen.image, level.heat), seen.part)
        words = in_words(level.probability)
        told = (number, level.path, words, _source(as_jpeg(laid)), bool(level.heat.any()))
        panels.append(Panel(*told))
    return panels


def _source(jpeg: bytes) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"
