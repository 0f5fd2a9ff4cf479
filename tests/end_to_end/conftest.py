"""The whole product, running: one Label Studio, one `hrn up` and one campaign a test run."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.end_to_end.backend import RunningBackend
from tests.end_to_end.campaign import Campaign
from tests.end_to_end.label_studio import RunningLabelStudio

# Trainings run beside the browser: a page takes longer than Playwright's five seconds then.
expect.set_options(timeout=20_000)

#: Screenshots and logs that are kept for people to look at.
ARTEFACTS = Path(__file__).parents[2] / "artefacts"


@pytest.fixture(scope="session")
def artefacts() -> Path:
    """A folder that outlives the run."""
    ARTEFACTS.mkdir(exist_ok=True)
    return ARTEFACTS


@pytest.fixture(scope="session")
def backend(
    label_studio: RunningLabelStudio, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningBackend]:
    """`hrn up`, with a policy for people in a hurry."""
    settings = {"HRN_TRAIN_EVERY": "50", "HRN_TRAIN_AFTER_MINUTES": "0.1"}
    running = RunningBackend(tmp_path_factory.mktemp("home"), label_studio, settings)
    try:
        running.wait_until_ready()
        yield running
    finally:
        running.stop()


@pytest.fixture(scope="session")
def campaign(label_studio: RunningLabelStudio, backend: RunningBackend, shared: Path) -> Campaign:
    """150 photos answered, the live version learnt from all of them."""
    running = Campaign.begin(label_studio, backend, shared / "data" / "grocery")
    running.answer_all()
    backend.until(running.learnt_from_all, 240, "a version that learnt from all answers")
    return running
