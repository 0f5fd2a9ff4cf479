"""What every test stands on: settings of Hypothesis, the folder of shared data, who runs where."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

# torch's first call outlasts any deadline. The same examples each time, so that red stays red, and
# more of them would find nothing new in the next run; only `make chaos SEED=...` draws others.
settings.register_profile(
    "hrn", deadline=None, derandomize="CHAOS_SEED" not in os.environ, max_examples=50
)
settings.load_profile("hrn")


@pytest.hookimpl(tryfirst=True)  # xdist reads the groups in the same hook
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Say which tests share a process where pytest-xdist runs several (`--dist loadgroup`).

    Two groups have a Label Studio and an `hrn up` each: files with a test of the campaign, and all
    others that need them. Every other file is a group of its own.
    """
    campaign = {item.path for item in items if "campaign" in getattr(item, "fixturenames", ())}
    for item in items:
        group = item.path.stem
        if item.path in campaign:
            group = "campaign"
        elif "label_studio" in getattr(item, "fixturenames", ()) or item.get_closest_marker(
            "label_studio"
        ):
            group = "label studio"
        item.add_marker(pytest.mark.xdist_group(group))


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of the golden files and photos: beside the repository, or where HRN_SHARED says."""
    beside = Path(__file__).resolve().parents[2] / "shared"
    folder = Path(os.environ.get("HRN_SHARED") or beside)
    if not folder.is_dir():
        pytest.fail(f"no folder {folder}: set HRN_SHARED to the folder of shared test data")
    return folder
