"""Small trainings for the evaluation's tests."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from evaluation import methods
from evaluation.features import Features
from worker.training_config import TrainingConfig

CONFIG = replace(
    TrainingConfig(),
    hidden=24,
    members=2,
    networks=(),
    epochs=4,
    least_shown=2400,
    batch=64,
    rate=1e-2,
    dropout=0.2,
)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Networks this small wait for each other's threads longer than they compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> TrainingConfig:
    """A training config for vectors of a few channels, in place of the product's."""

    def configured(labels: int, features: Features, seed: int) -> TrainingConfig:
        del labels, features
        return replace(CONFIG, seed=seed)

    for module in ("methods", "growth", "simulation"):
        monkeypatch.setattr(f"evaluation.{module}.configure", configured)
    assert methods.configure is configured
    return CONFIG
