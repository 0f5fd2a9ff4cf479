"""The application from the environment, for a WSGI server: `gunicorn backend.wsgi:app`."""

import os

from backend.app import create_app
from worker.parts import Parts
from worker.settings import Settings

app = create_app(Parts(Settings.from_environ(os.environ)))
