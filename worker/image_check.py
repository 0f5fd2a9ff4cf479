"""What doctor looks at beyond a project's wiring: its images, its last training, its labels."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any, Final

from inference.errors import EarlierReleaseError, ModelError
from inference.predictor import check_runs
from studio.errors import ImageError, StudioError
from studio.label_config import LabelConfig, parse_label_config
from studio.project_checks import Finding
from worker.errors import MisconfiguredError
from worker.identity import is_ours
from worker.order import RunState
from worker.parts import Parts
from worker.queue import RedisError
from worker.snapshot import counted

#: Images of a project that are fetched and decoded.
TRIED: Final = 3
#: Ways in which a training ends that somebody should do something about.
_ENDED_BADLY: Final = frozenset(
    {RunState.FAILED, RunState.POSTPONED, RunState.MISCONFIGURED, RunState.DIED}
)


def look(parts: Parts, number: int) -> Iterator[Finding]:
    """Fetch three images of a project and repeat what is known of its labels and trainings.

    Args:
        parts: built from the settings in question.
        number: the project's, which Label Studio knows.
    """
    try:
        yield from _images(parts, number)
    except StudioError as error:
        fix = "see to it that Label Studio answers, then run `hrn doctor` again"
        yield Finding("images", ok=False, what=f"No image could be tried: {error}", fix=fix)
    url = parts.settings.label_studio_url
    for project in parts.store.projects():
        if project.number == number and is_ours(project, url):
            yield from _last_run(parts, project.key)
            yield from _labels(parts, project.key)


def _images(parts: Parts, number: int) -> Iterator[Finding]:
    config = parse_label_config(str(parts.studio.settings(number)["label_config"]))
    tasks = list(islice(parts.studio.tasks(number, page_size=TRIED), TRIED))
    if not tasks:
        return
    with ThreadPoolExecutor(TRIED) as pool:
        reasons = list(pool.map(lambda task: _refusal(parts, config, task), tasks))
    bad = [f"task {task['id']}: {why}" for task, why in zip(tasks, reasons, strict=True) if why]
    if not bad:
        yield Finding("images", ok=True, what=f"{len(tasks)} images of its tasks can be read")
        return
    what = f"{len(bad)} of {len(tasks)} images that were tried cannot be read. {'. '.join(bad)}"
    fix = "do what the reason says; nothing is learnt from such an image, nor pre-labelled"
    yield Finding("images", ok=False, what=what, fix=fix)


def _refusal(parts: Parts, config: LabelConfig, task: dict[str, Any]) -> str:
    """Why the task's image cannot be read, "" if it can."""
    ref = config.image_address(task.get("data") or {})
    if ref is None:
        return f"its data has no image address in {config.image_key!r}"
    try:
        file = parts.fetcher.fetch(ref, task_id=int(task["id"]))
        parts.decoders.decode(file.data, limits=parts.limits, at_least=1)
    except ImageError as error:
        return error.reason
    return ""


def _last_run(parts: Parts, key: str) -> Iterator[Finding]:
    try:
        runs = parts.board.runs(key)
    except (RedisError, MisconfiguredError):  # another finding says so
        return
    if not runs:
        return
    state, why, figures = runs[0]["state"], runs[0]["why"], runs[0].get("figures") or {}
    # A project that has too few labels yet is as it should be, unless there are some that do not
    # count.
    ok = state not in _ENDED_BADLY and not figures.get("passed_over")
    fix = "" if ok else "do what the reason says, then run `hrn train`"
    yield Finding("training", ok=ok, what=f"The last training: {state} ({why})", fix=fix)


def _labels(parts: Parts, key: str) -> Iterator[Finding]:
    version = parts.store.current(key)
    if version is None:
        return
    try:
        manifest = parts.store.manifest(key, version)
        labels = manifest["labels"]
        check_runs(manifest, version)
    except EarlierReleaseError as error:
        fix = "wait for the training that the worker was asked for, or run `hrn train`"
        yield Finding("version", ok=False, what=str(error), fix=fix)
        return
    except ModelError:  # routes and `/ready` say so
        return
    what = f"{version} learnt from {labels['labels']} labels"
    if passed := {**labels.get("ignored", {}), **labels.get("skipped", {})}:
        what += f"; passed over: {counted(passed)}"
    yield Finding("labels", ok=True, what=what)
