"""Pages for the admin, in the browser that is there."""

from flask import Flask

from backend.console import (
    connection,
    guards,
    look,
    projects,
    signin,
    training,
    tree,
    trust,
    versions,
)
from backend.console.blueprint import bp
from backend.console.state import Console
from worker.parts import Parts

__all__ = [
    "bp",
    "connection",
    "guards",
    "look",
    "projects",
    "register",
    "signin",
    "training",
    "tree",
    "trust",
    "versions",
]


def register(app: Flask, parts: Parts) -> None:
    """Put the console into an application; opens and starts nothing."""
    app.extensions["console"] = Console.of(parts)
    app.register_blueprint(bp)
    guards.register(app)
