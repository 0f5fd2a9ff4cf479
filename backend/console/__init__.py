"""Pages for the admin, in the browser that is there."""

from flask import Flask

from backend.console import auth, connection, look, projects, training, tree, trust, versions
from backend.console.blueprint import bp
from backend.console.state import Console
from worker.parts import Parts

__all__ = [
    "auth",
    "bp",
    "connection",
    "look",
    "projects",
    "register",
    "training",
    "tree",
    "trust",
    "versions",
]


def register(app: Flask, parts: Parts) -> None:
    """Put the console into an application; opens and starts nothing."""
    made = app.extensions["console"] = Console.of(parts)
    made.sessions.register(app)
    app.register_blueprint(bp)
    auth.register(app)
