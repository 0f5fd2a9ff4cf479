"""Is a project in Label Studio still the one that versions were trained for?"""

from collections.abc import Mapping
from typing import Any

from inference.store import Project
from studio.schemas import project_key
from worker.errors import MisconfiguredError


class OtherProjectError(MisconfiguredError):
    """The project of that number is not the one that versions were trained for."""


def check_same(project: Project, settings: Mapping[str, Any]) -> None:
    """Refuse another project of that number: creation times do not repeat, numbers do.

    Raises:
        OtherProjectError: the project of that number is another one.
    """
    there = project_key(project.number, str(settings["created_at"]))
    if there != project.project:
        raise OtherProjectError(
            f"project {project.number} in Label Studio is {there}, not {project.project}, which "
            "belongs to another Label Studio or was deleted: nothing is trained for it"
        )


def is_ours(project: Project, label_studio_url: str) -> bool:
    """Tell whether the record belongs to the Label Studio that this server is set up for."""
    return project.label_studio.rstrip("/") == label_studio_url.rstrip("/")
