"""The application for a WSGI server, put together from the environment: `gunicorn backend.wsgi:app`."""

import os

from backend.app import create_app
from worker.parts import Parts
from worker.settings import Settings

app = create_app(Parts(Settings.from_environ(os.environ)))
