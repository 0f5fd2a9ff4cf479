"""A recording backend, and the client of a real Label Studio."""

from collections.abc import Iterator

import pytest

from studio.client import LabelStudio
from tests.end_to_end.label_studio import RunningLabelStudio
from tests.studio.recording_backend import RecordingBackend, running_backend


@pytest.fixture
def backend() -> Iterator[RecordingBackend]:
    with running_backend() as running:
        yield running


@pytest.fixture
def client(label_studio: RunningLabelStudio) -> LabelStudio:
    return label_studio.client()
