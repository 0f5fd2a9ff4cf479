"""What every test stands on: settings of Hypothesis, the folder of shared data, who runs where."""

import os
from functools import cache
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import settings
from xdist.scheduler import LoadScopeScheduling

ROOT: Final = Path(__file__).resolve().parents[1]

# torch's first call outlasts any deadline. The same examples each time, so that red stays red, and
# more of them would find nothing new in the next run; only `make chaos SEED=...` draws others.
CHAOS: Final = "CHAOS_SEED" in os.environ
settings.register_profile(
    "hrn", deadline=None, derandomize=not CHAOS, max_examples=100 if CHAOS else 25
)
settings.load_profile("hrn")


class SharedServers(LoadScopeScheduling):  # type: ignore[misc]  # pytest-xdist has no types
    """Deals test files to processes, those that share a Label Studio to one.

    Two groups have a Label Studio and an `hrn up` each: files with a test of the campaign, and all
    others that need them. pytest-xdist's own groups (`xdist_group`) do nothing under pytest 9.2.
    """

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return _group(file)


@cache
def _group(file: str) -> str:
    code = (ROOT / file).read_text(encoding="utf-8")
    if "campaign: Campaign" in code:
        return "campaign"
    return "label studio" if "label_studio: RunningLabelStudio" in code else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> SharedServers | None:
    """See pytest-xdist: used where tests are dealt out by file."""
    return SharedServers(config, log) if config.getvalue("dist") == "loadfile" else None


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of the golden files and photos: beside the repository, or where HRN_SHARED says."""
    beside = Path(__file__).resolve().parents[2] / "shared"
    folder = Path(os.environ.get("HRN_SHARED") or beside)
    if not folder.is_dir():
        pytest.fail(f"no folder {folder}: set HRN_SHARED to the folder of shared test data")
    return folder
