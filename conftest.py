"""Fixtures for every room: pytest takes plugins only from the topmost conftest."""

pytest_plugins = ["tests.end_to_end.label_studio"]
