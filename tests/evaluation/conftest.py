"""Small trainings for the evaluation's tests."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest
import torch

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

    def configured(networks: Sequence[int] = (), *, seed: int = 0) -> TrainingConfig:
        del networks
        return replace(CONFIG, seed=seed)

    monkeypatch.setattr(TrainingConfig, "for_networks", configured)
    return CONFIG
