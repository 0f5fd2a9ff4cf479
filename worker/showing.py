"""Whether a project's live version shows any label, and what is missing where it shows none."""

from inference.insight import Missing, missing_evidence
from inference.store import Project
from worker.parts import Parts


def nothing_shown(parts: Parts, project: Project, version: str) -> Missing | None:
    """Return what a version still needs before it shows a label; None where it shows some.

    Raises:
        UnknownVersionError, ModelStoreError: it is not there, or not whole.
    """
    rule = parts.records.calibration(project, version)["rule"]
    if rule["price"] is not None:
        return None
    record = parts.records.get(project.key, version).record
    if record is None or rule["thresholds"] is not None:  # nothing kept; each level by itself
        return Missing(rule["target"], 0, 0, None)
    return missing_evidence(
        record.seen,
        target=rule["target"],
        minimum=project.minimum_depth,
        maximum=project.maximum_depth,
    )
