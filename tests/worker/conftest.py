"""Real Redis, a real store, and a small server where Label Studio is."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from inference.extractors import FeatureExtractors
from inference.store import Project
from tests.inference import small
from tests.published import TREE, project
from tests.redis import board, redis_url
from tests.studio.configs import taxonomy_xml
from tests.studio.servers import serving
from tests.worker.stand import LEGACY, Stand
from worker.parts import Parts
from worker.queue import Board
from worker.settings import Secret, Settings

__all__ = ["board", "redis_url"]


@pytest.fixture
def stand() -> Iterator[Stand]:
    """A project without labels, on a server that answers at once."""
    made = Stand()
    with serving(made) as server:
        made.server = server
        yield made


@pytest.fixture
def parts(tmp_path: Path, redis_url: str, stand: Stand, board: Board) -> Parts:
    """Parts over an empty store and an empty Redis."""
    return Parts(
        Settings(
            home=tmp_path,
            redis_url=redis_url,
            label_studio_url=stand.url,
            label_studio_token=Secret(LEGACY),
            device="cpu",
        )
    )


@pytest.fixture
def known(parts: Parts, stand: Stand) -> Project:
    """The stand's project, which has called."""
    return parts.store.register(project(stand.url, xml=taxonomy_xml(TREE)))


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> FeatureExtractors:
    """One small backbone for all tests, which takes a while to check; images `<number>.png`."""
    weights = small.weights_file(tmp_path_factory.mktemp("weights"))
    return small.extractors(tmp_path_factory.mktemp("cache"), weights)


@pytest.fixture
def served(parts: Parts, shared: FeatureExtractors) -> Parts:
    """Parts that can serve versions on that backbone."""
    vars(parts)["extractors"] = shared
    return parts


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Networks this small wait for each other's threads longer than they compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
