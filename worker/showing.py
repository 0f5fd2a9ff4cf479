"""Whether a project's live version shows any label, and what is missing where it shows none."""

from functools import lru_cache

from hierarchy.feedback import preview
from models.insight import Missing, missing_evidence
from models.records import Records
from models.store import ModelStore, Project
from worker.parts import Parts


def nothing_shown(parts: Parts, project: Project, version: str) -> Missing | None:
    """What a version still needs before it shows a label; None where it shows some.

    Raises:
        UnknownVersionError, ModelStoreError: it is not there, or not whole.
    """
    rule = parts.store.manifest(project.key, version)["calibration"]["rule"]
    fitted = (rule["target"], rule["minimum"], rule["maximum"], bool(rule.get("thresholds")))
    limits = (project.minimum_depth, project.maximum_depth, project.strict)
    asked = (project.target_accuracy or float(rule["target"]), *limits)
    if asked == fitted and rule["price"] is not None:
        return None
    return _missing(parts.store, project.key, version, asked, refit=asked != fitted)


@lru_cache(maxsize=256)
def _missing(
    store: ModelStore,
    key: str,
    version: str,
    asked: tuple[float, int, int | None, bool],
    *,
    refit: bool,
) -> Missing | None:
    """The same, from the version's evidence: it is read once, since versions never change."""
    target, minimum, maximum, strict = asked
    record = Records(store).get(key, version).record
    if record is None:  # of a release that kept no evidence
        return None if refit else Missing(target, 0, 0, None)
    if refit:
        found = preview(record.seen, target=target, strict=strict, minimum=minimum, maximum=maximum)
        if found.standing != "none":
            return None
    return missing_evidence(record.seen, target=target, minimum=minimum, maximum=maximum)
