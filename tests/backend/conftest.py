"""The application over real parts: Redis, a store with real versions, a server of pictures."""

import io
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flask.testing import FlaskClient
from PIL import Image

from backend.app import create_app
from hierarchy import LabelTree
from inference.store import Project
from studio.image_decoder import ImageLimits
from studio.image_fetcher import ImageFetcher
from tests.published import TREE, project, publish
from tests.redis import board, redis_url
from tests.studio.configs import taxonomy_xml
from tests.studio.image_server import ImageServer, serving
from worker.parts import Parts
from worker.settings import Settings

__all__ = ["board", "redis_url"]

#: No picture server of these tests is slow but the one that is to be.
QUICK = ImageLimits(read_timeout=0.5, total_timeout=1.0, retry_pauses=())


def jpeg(seed: int = 0) -> bytes:
    """A picture of noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (64, 80, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()


#: Runs inside the environment of label-studio-ml 1.0.9, which this one cannot import.
collect_ignore = ["upstream_check.py"]


@pytest.fixture(scope="session")
def pictures() -> Iterator[ImageServer]:
    """It stands where Label Studio is, so that its private address is allowed."""
    with serving() as server:
        for seed in range(3):
            server.answers[f"/data/upload/1/{seed}.jpg"] = jpeg(seed)
        yield server


@pytest.fixture(scope="session")
def parts(tmp_path_factory: pytest.TempPathFactory, pictures: ImageServer, redis_url: str) -> Parts:
    """One set for the run, since its backbone takes seconds to load; its store is never emptied."""
    home = tmp_path_factory.mktemp("home")
    settings = Settings(home=home, redis_url=redis_url, label_studio_url=pictures.url, device="cpu")
    made = Parts(settings)
    vars(made)["fetcher"] = ImageFetcher(pictures.url, None, QUICK)
    made.extractors.base()
    return made


def go_live(parts: Parts, known: Project, tree: LabelTree = TREE, **more: Any) -> str:
    """A version that this server can serve."""
    fingerprint = parts.extractors.base().fingerprint
    return publish(parts.store, known, tree, fingerprint=fingerprint, **more)


@pytest.fixture
def client(parts: Parts) -> FlaskClient:
    return create_app(parts).test_client()


@pytest.fixture
def without_redis(parts: Parts) -> FlaskClient:
    """The same store, pictures and models, but nothing listens where Redis should be."""
    lame = Parts(replace(parts.settings, redis_url="redis://127.0.0.1:1/0"))
    vars(lame)["extractors"] = parts.extractors
    return create_app(lame).test_client()


@pytest.fixture
def bare(tmp_path: Path) -> Callable[..., FlaskClient]:
    """A client of a server with nothing but an empty home and the settings given."""

    def make(**settings: Any) -> FlaskClient:
        return create_app(Parts(Settings(home=tmp_path, **settings))).test_client()

    return make


@pytest.fixture
def fresh(parts: Parts) -> Callable[..., Project]:
    """Makes a project that no other test has used."""

    def make(tree: LabelTree = TREE) -> Project:
        name = f"{len(parts.store.projects()) + 1}.1795440233"
        studio = parts.settings.label_studio_url
        return parts.store.register(project(studio, name, taxonomy_xml(tree)))

    return make


def asking(known: Project, refs: list[Any]) -> dict[str, Any]:
    """Body of a `/predict` about these picture addresses."""
    tasks = [{"id": number, "data": {"image": ref}} for number, ref in enumerate(refs, 1)]
    return {"tasks": tasks, "project": known.project, "label_config": known.label_config}
