"""The console's one blueprint; each page's module adds its routes to it."""

from typing import Final

from flask import Blueprint

PREFIX: Final = "/console"

bp = Blueprint(
    "console",
    __name__,
    url_prefix=PREFIX,
    template_folder="templates",
    static_folder="static",
    static_url_path="/static",
)

#: Pages of a project, in the order of its tabs: endpoint and title. A tab shows once its page is
#: there; each page's route is ``/projects/<key>/...``.
TABS: Final = (
    ("console.training", "Training"),
    ("console.versions", "Versions"),
    ("console.tree", "Tree"),
    ("console.trust", "Trust"),
    ("console.look", "Look"),
    ("console.connection", "Connection"),
)


def is_console(path: str) -> bool:
    """Whether a request's path belongs to the console."""
    return path == PREFIX or path.startswith(f"{PREFIX}/")
