"""A real Redis, and settings that point at it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.redis import board, redis_url
from worker.queue import Board
from worker.settings import Settings

__all__ = ["board", "redis_url"]


@pytest.fixture
def settings(tmp_path: Path, redis_url: str, board: Board) -> Settings:
    """An empty store, an empty Redis, and no Label Studio."""
    return Settings(home=tmp_path, redis_url=redis_url, device="cpu", backbone="no_such")


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """An environment without our variables but HRN_HOME, and a way to set more."""
    for name in Settings.__doc__.split() if Settings.__doc__ else ():
        if name.isupper() and "_" in name:
            monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HRN_HOME", str(tmp_path))

    def put(**variables: Any) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, str(value))

    return put
