"""Release of a version: which one is live, how deep its pre-labels go, and which ones stay.

Here, below the command and the console, so that both do the same; loads no training loop.
"""

import logging
from dataclasses import replace

from hierarchy.calibration import Preview, preview
from inference.errors import ModelStoreError
from inference.predictor import check_runs, read_evidence
from inference.store import DISCONNECTED, GONE, ModelStore, Project
from studio.errors import StudioError
from studio.project_setup import announce
from worker.errors import JobError, MisconfiguredError
from worker.parts import Parts

log = logging.getLogger(__name__)


class ChoiceError(JobError):
    """A choice that cannot be; the message says what can."""


def go_live(parts: Parts, project: Project, version: str) -> None:
    """Tell Label Studio, and ask for new pre-labels; neither may undo that the version is live.

    What fails here, the reconciler does within a minute. Nothing is done where Label Studio has no
    use for this backend any more.
    """
    from worker.queue import RedisError  # trainings also run where no queue is installed

    now = parts.store.project(project.key)
    if now is not None and now.state in (DISCONNECTED, GONE):
        return
    if parts.settings.backend_url:
        try:
            ours = parts.store.names(project.key)
            announce(parts.studio, project.number, parts.settings.backend_url, version, ours)
        except (StudioError, MisconfiguredError) as error:
            log.warning("not announced yet project=%s version=%s: %s", project.key, version, error)
    try:
        parts.board.ask_refresh(project.key, version)
    except (RedisError, MisconfiguredError) as error:
        log.warning("refresh not asked for yet project=%s: %s", project.key, error)


def promote(parts: Parts, project: Project, version: str, *, pin: bool) -> None:
    """Make a version live.

    Args:
        parts: the container.
        project: whose.
        version: its name.
        pin: keep it live whatever is trained next.

    Raises:
        EarlierReleaseError: an earlier release trained it, so nothing can run it any more.
        UnknownVersionError, ModelStoreError: it is not there, or not whole.
    """
    check_runs(parts.store.manifest(project.key, version), version)
    parts.store.weights(project.key, version)  # whole?
    # Pinned first: a training that ends in between must not undo the choice.
    now = parts.store.project(project.key) or project
    parts.store.save_project(replace(now, pinned=pin))
    parts.store.point(project.key, version, reason="chosen by hand")
    go_live(parts, project, version)


def rollback(parts: Parts, project: Project) -> str:
    """Go back to the version that was live before, and stay there; return its name.

    Raises:
        ChoiceError: there is none that this release can run.
    """
    version = parts.store.previous(project.key)
    if version is None:
        raise ChoiceError(
            f"{project.key} has had no other live version that still exists and that this release "
            "can run: choose one with `hrn promote`, or train"
        )
    promote(parts, project, version, pin=True)
    return version


def check_depth(target: float | None, minimum: int, maximum: int | None) -> None:
    """Refuse what cannot be asked for.

    Raises:
        ChoiceError: with what was expected.
    """
    if target is not None and not 0 < target < 1:
        raise ChoiceError(
            f"the target accuracy must lie between 0 and 1, got {target}: 0.95 means 95 %"
        )
    if minimum < 1 or (maximum is not None and maximum < minimum):
        raise ChoiceError(
            f"expected 1 <= minimum <= maximum depth, got {minimum} and {maximum or 'no limit'}"
        )


def set_depth(parts: Parts, asked: Project) -> None:
    """Store what is asked of a project's pre-labels; open tasks get those by the new rule.

    Raises:
        ChoiceError: see `check_depth`.
        RedisError: what is asked for is stored; open tasks change with the next version.
    """
    check_depth(asked.target_accuracy, asked.minimum_depth, asked.maximum_depth)
    if asked == parts.store.project(asked.key):
        return
    parts.store.save_project(asked)
    if (live := parts.store.current(asked.key)) is not None:
        parts.board.note_moved(asked.key, live)


def depth_preview(parts: Parts, asked: Project) -> tuple[str, Preview] | None:
    """Return what the live version would show of the images that it was checked on, and its name.

    None without a live version that keeps its evidence.
    """
    live = parts.store.current(asked.key)
    if live is None:
        return None
    seen = read_evidence(parts.store.weights(asked.key, live))
    if seen is None:
        return None
    return live, preview(
        seen,
        target=asked.target_accuracy or parts.settings.target_accuracy,
        minimum=asked.minimum_depth,
        maximum=asked.maximum_depth,
        strict=asked.strict,
    )


def prune_versions(store: ModelStore, key: str, keep: int) -> list[str]:
    """Delete a project's oldest versions beyond the newest ``keep``.

    Never the live one, its parent and the one that was live before, which are the ways back, or one
    that a person wrote a note on; none at all while it is not known which one is live.

    Args:
        store: with the versions.
        key: of the project.
        keep: versions; 0 keeps all.

    Returns:
        Those that were deleted, oldest first.

    Raises:
        ModelStoreError: the store cannot be read.
    """
    if not keep or store.current(key) is None:
        return []
    old = store.versions(key)[:-keep]
    needed = {*store.needed(key), store.previous(key)} if old else set()
    deleted = []
    for version in old:
        if version in needed or store.note(key, version):
            continue
        try:
            store.delete(key, version)
        except ModelStoreError as error:  # it went live just now, or the disk is full: next time
            log.warning("old version not deleted project=%s version=%s: %s", key, version, error)
            continue
        deleted.append(version)
    if deleted:
        log.info("project=%s: of more than %d versions deleted %s", key, keep, ", ".join(deleted))
    return deleted
