"""How many versions of a project are kept: the newest, and those that somebody needs."""

import logging

from inference.errors import ModelStoreError
from inference.store import ModelStore

log = logging.getLogger(__name__)


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
        except ModelStoreError as error:  # it went live just now, or the disk is ill: next time
            log.warning("old version not deleted project=%s version=%s: %s", key, version, error)
            continue
        deleted.append(version)
    if deleted:
        log.info("project=%s: of more than %d versions deleted %s", key, keep, ", ".join(deleted))
    return deleted


__all__ = ["prune_versions"]
