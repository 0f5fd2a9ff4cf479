"""Putting the HTTP application together: the one place where it is done."""

from flask import Flask
from werkzeug.middleware.proxy_fix import ProxyFix

from backend import (
    console,
    errors,
    health,
    operations,
    predict,
    security,
    setup,
    versions,
    webhook,
)
from backend.services import Services
from worker.parts import Parts

#: Largest body in bytes: 1,503 tasks came in 0.8 MB, so this is some 100,000 tasks.
MAX_BODY = 64 * 1024 * 1024


def create_app(parts: Parts) -> Flask:
    """The application over the given parts; opens and starts nothing."""
    app = Flask("backend", static_folder=None, template_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = MAX_BODY
    app.extensions["services"] = Services(parts)
    app.wsgi_app = ProxyFix(app.wsgi_app, x_for=1, x_proto=1)  # type: ignore[method-assign]
    security.register(app)
    errors.register(app)
    operations.measure(app)
    for module in (health, setup, predict, webhook, versions, operations):
        app.register_blueprint(module.bp)
    console.register(app, parts)
    return app
