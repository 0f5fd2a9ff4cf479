"""The training loop, and several of them at once.

Knows nothing of what is trained but how to ask for its loss, so that every method in a comparison
goes through the same steps. R labels (rows), P images, V augmentations each, C channels.
"""

import math
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from inference.precision import has_bf16
from worker.training_config import TrainingConfig

#: ``(B, C)`` vectors, ``(B,)`` or ``(B, K)`` targets and ``(B,)`` weights -> scalar loss.
Objective = Callable[[Tensor, Tensor, Tensor], Tensor]


class Report(Protocol):
    """Told of progress; may raise to stop the run (a cancelled job)."""

    def __call__(self, stage: str, done: int, total: int, **figures: float) -> None:
        """Report ``done`` of ``total`` in ``stage``, with figures such as ``loss`` in nats."""


@dataclass(frozen=True)
class Rows:
    """Labels as the loop reads them.

    Attributes:
        image: ``(R,)`` the image that each label belongs to.
        target: ``(R,)`` the node it names; or ``(R, K)``, one of these, filled up with -1.
        weight: ``(R,)`` what it counts.
    """

    image: Tensor
    target: Tensor
    weight: Tensor

    def __len__(self) -> int:
        return len(self.image)

    def __getitem__(self, chosen: Tensor) -> "Rows":
        return Rows(self.image[chosen], self.target[chosen], self.weight[chosen])

    def single(self) -> Tensor:
        """Return ``(R,)`` the node of each label that names one only, -1 for the others."""
        if self.target.ndim == 1:
            return self.target
        one = (self.target >= 0).sum(dim=1) == 1
        return torch.where(one, self.target[:, 0], -1)


def fit(  # noqa: PLR0913 - one loop's inputs
    network: nn.Module,
    objective: Objective,
    vectors: Tensor,
    rows: Rows,
    config: TrainingConfig,
    tell: Callable[..., None],
    *,
    device: str = "cpu",
) -> None:
    """Train by AdamW, cosine to 0, drawing one of an image's augmentations each time it is shown.

    Args:
        network: trained in place; left in eval mode.
        objective: calls the network; in bfloat16 where the device has it and autocast allows.
        vectors: ``(P, V, C)`` of all images.
        rows: what is learnt from.
        config: the settings.
        tell: called after each epoch with what is done, of how much, and the mean loss.
        device: where the network is.

    Raises:
        FloatingPointError: the loss is not finite.
    """
    epochs, steps = config.schedule(len(rows))
    optimiser, schedule = _optimiser(network, config, epochs * steps)
    draw = torch.Generator().manual_seed(config.seed)
    low, count = has_bf16(device), vectors.shape[1]
    flat = vectors.flatten(0, 1)
    network.train()
    for epoch in range(epochs):
        total = 0.0
        for chosen in torch.randperm(len(rows), generator=draw).split(config.batch_of(len(rows))):
            if len(chosen) < 2:  # batch norm needs two; the row comes again next epoch
                continue
            some = rows[chosen]
            which = torch.randint(count, (len(chosen),), generator=draw)
            seen = flat.index_select(0, some.image * count + which).to(device).float()
            with torch.autocast(device, torch.bfloat16, enabled=low):
                loss = objective(seen, some.target.to(device), some.weight.to(device))
            if not torch.isfinite(loss):
                raise FloatingPointError(f"the loss became {loss.item()} in epoch {epoch + 1}")
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            schedule.step()
            total += loss.item() * len(chosen)
        tell(epoch + 1, epochs, loss=total / len(rows))
    network.eval()


def _optimiser(
    network: nn.Module, config: TrainingConfig, steps: int
) -> tuple[torch.optim.AdamW, torch.optim.lr_scheduler.CosineAnnealingLR]:
    matrices: list[nn.Parameter] = []
    spared: list[nn.Parameter] = []
    for name, value in network.named_parameters():
        if value.requires_grad:
            decays = value.ndim > 1 and "bias" not in name.split(".")
            (matrices if decays else spared).append(value)
    groups = [
        {"params": some, "weight_decay": decay}
        for some, decay in ((matrices, config.decay), (spared, 0.0))
        if some
    ]
    # Fused: each step goes once over the weights, a third of the whole time.
    optimiser = torch.optim.AdamW(groups, lr=config.rate, fused=True)
    return optimiser, torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(1, steps))


class StoppedError(Exception):
    """Another fit of the same training failed or was stopped."""


def fit_side_by_side(
    fits: Sequence[Callable[[Callable[..., None]], None]],
    report: Report,
    stage: str,
    *,
    device: str,
) -> None:
    """Run several fits, the last first, as many at a time as there are cores; report them as one.

    One fit on all cores gains little, as its steps are small, and loses eightfold when something
    else wants a core. When one fails, or reporting raises, which is how a job is cancelled, the
    others stop.

    Args:
        fits: each calls what it is given after each epoch with what is done, of how much, and its
            figures.
        report: called with per cent over all fits, the last one's loss, and ``at``, the share that
            the fit whose figures these are has done.
        stage: its name.
        device: a GPU runs one at a time.

    Raises:
        Exception: the first that a fit raised, other than being stopped because of it.
    """
    shares, lock, failed = [0.0] * len(fits), threading.Lock(), threading.Event()

    def run(number: int) -> None:
        def tell(done: int, total: int, **figures: float) -> None:
            with lock:
                if failed.is_set():
                    raise StoppedError
                shares[number] = done / total
                percent = math.floor(100 * sum(shares) / len(shares) + 1e-9)
                if number < len(fits) - 1:
                    figures.pop("loss", None)
                at = {"at": done / total} if figures else {}
                try:
                    report(stage, percent, 100, **figures, **at)
                except BaseException:
                    failed.set()
                    raise

        try:
            fits[number](tell)
        except BaseException:
            failed.set()
            raise

    at_once = max(1, (os.cpu_count() or 1) // torch.get_num_threads()) if device == "cpu" else 1
    with ThreadPoolExecutor(at_once, thread_name_prefix="fit") as pool:
        futures = [pool.submit(run, number) for number in reversed(range(len(fits)))]
    errors = [error for future in futures if (error := future.exception()) is not None]
    for error in errors:
        if not isinstance(error, StoppedError):
            raise error
