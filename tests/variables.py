"""The list of settings: the variables of `Settings`."""

from dataclasses import fields

from worker.settings import Settings


def setting_names() -> set[str]:
    """Return the names of all variables that are read."""
    return {field.metadata["name"] for field in fields(Settings)}
