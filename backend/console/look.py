"""/console/projects/<key>/look: one image, what the version says of it, and where it looked."""

import base64
import hashlib
from contextlib import closing
from http import HTTPStatus
from typing import Any, Final

from flask import request
from flask.typing import ResponseReturnValue
from PIL import Image

from backend.console.auth import LARGER
from backend.console.blueprint import bp
from backend.console.layout import asked_version, page, plain, the_project
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

#: Seconds that an image waits for its turn: predictions for annotators go first.
PATIENCE: Final = 20.0


class LookError(Exception):
    """An image that cannot be explained; the message says why, for people."""


@bp.get("/projects/<key>/look", endpoint="look")
def look_page(key: str) -> ResponseReturnValue:
    """Show the form; with ``task`` in the query, that task's image."""
    project = the_project(key)
    task = request.args.get("task", "").strip()[:20]
    return _page(project, task=task) if task else _page(project)


@bp.post("/projects/<key>/look")
def look_at(key: str) -> ResponseReturnValue:
    """Explain an uploaded file; nothing of it is stored but its features.

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
        image = _of_task(project, config, task) if data is None else _of_file(data)
        sight = _seen(project, version, config, image)
    except (LookError, ImageError, StudioError, ModelError, JobError) as error:
        status = HTTPStatus.UNPROCESSABLE_ENTITY
        return page("look", status=status, problem=plain(str(error)), **words)
    shown, levels = sight.looked.image, sight.looked.levels
    return page(
        "look",
        sight=sight,
        steps=[_step(config.tree, step) for step in sight.steps],
        above=["", *(level.path[-1] for level in levels)],
        source=_source(sight, shown),
        panels=[(level, _source(sight, overlaid(shown, level.heat))) for level in levels],
        in_words=in_words,
        **words,
    )


def _of_task(project: Project, config: LabelConfig, task: str) -> FetchedImage:
    """Fetch the image of a task of this project.

    Raises:
        LookError: there is no such task here.
        StudioError: Label Studio or the image's own server did not give it.
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
        raise LookError(f"The data of task {task} names no image in {config.image_key!r}.")
    return parts.fetcher.fetch(ref, task_id=int(task))


def _of_file(data: bytes) -> FetchedImage:
    if not data:
        raise LookError("Choose an image file first.")
    if len(data) > MOST_BYTES:
        raise LookError(f"The file is larger than {MOST_BYTES // 2**20} MB.")
    return FetchedImage(hashlib.sha256(data).hexdigest(), data)


def _seen(project: Project, version: str, config: LabelConfig, image: FetchedImage) -> Sight:
    """Explain an image by the predictor that answers `/predict`; a few at a time."""
    own = services()
    if not own.looks.acquire(timeout=PATIENCE):
        raise LookError("Too many images are being looked at now. Try again in a moment.")
    try:
        predictor = own.parts.predictors.get(project, version, config.tree)
        return look(predictor, own.parts.extractors.of(predictor), image)
    finally:
        own.looks.release()


def _step(tree: LabelTree, step: Step) -> dict[str, Any]:
    """Return names, probabilities and whether on the path, likeliest first; and what is left."""
    twigs = [(tree.names[twig.node], twig.probability, twig.on_path) for twig in step.twigs]
    return {"twigs": twigs, "others": step.others, "other": step.other, "none": step.none}


def _source(sight: Sight, image: Image.Image) -> str:
    """Return an image with the frame of what the networks see, as an address in the page."""
    jpeg = as_jpeg(framed(image, sight.looked.part))
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"
