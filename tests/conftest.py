"""What every test stands on: the settings of Hypothesis and the folder of shared data."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

# torch's first call outlasts any deadline. The same examples each time, so that red stays red; only
# `make chaos SEED=...` draws others.
settings.register_profile("hrn", deadline=None, derandomize="CHAOS_SEED" not in os.environ)
settings.load_profile("hrn")


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of the golden files and photos: beside the repository, or where HRN_SHARED says."""
    beside = Path(__file__).resolve().parents[2] / "shared"
    folder = Path(os.environ.get("HRN_SHARED") or beside)
    if not folder.is_dir():
        pytest.fail(f"no folder {folder}: set HRN_SHARED to the folder of shared test data")
    return folder
