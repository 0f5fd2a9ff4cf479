"""The training loop, and several of them side by side.

Knows nothing of what is trained but how to ask for its loss, so that every method in a comparison
goes through the same steps. R labels (rows), V views a picture, P pictures, c channels, H x W grid.
"""

import math
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from hierarchy.network import Features, FrozenHead
from inference.precision import has_bf16
from worker.recipe import Recipe

#: Features of B pictures, ``(B,)`` or ``(B, K)`` targets and ``(B,)`` weights -> scalar loss.
Objective = Callable[[Features, Tensor, Tensor], Tensor]


ItemT = TypeVar("ItemT")
FoundT = TypeVar("FoundT")


class Report(Protocol):
    """Told of progress; may raise to stop the run (a cancelled job)."""

    def __call__(self, stage: str, done: int, total: int, **figures: float) -> None:
        """``done`` of ``total`` in ``stage``, with figures such as ``loss`` in nats."""


@dataclass(frozen=True)
class Rows:
    """Labels as the loop reads them.

    Attributes:
        picture: ``(R,)`` the picture that each label belongs to.
        target: ``(R,)`` the node it names; or ``(R, K)``, one of these, filled up with -1.
        weight: ``(R,)`` what it counts.
    """

    picture: Tensor
    target: Tensor
    weight: Tensor

    def __len__(self) -> int:
        return len(self.picture)

    def __getitem__(self, chosen: Tensor) -> "Rows":
        return Rows(self.picture[chosen], self.target[chosen], self.weight[chosen])

    def single(self) -> Tensor:
        """``(R,)`` the node of each label that names one only, -1 for the others."""
        if self.target.ndim == 1:
            return self.target
        one = (self.target >= 0).sum(dim=1) == 1
        return torch.where(one, self.target[:, 0], -1)


def fit(  # noqa: PLR0913 - one loop's inputs
    network: nn.Module,
    objective: Objective,
    views: Sequence[Features],
    rows: Rows,
    recipe: Recipe,
    tell: Callable[..., None],
    *,
    device: str = "cpu",
) -> None:
    """AdamW, cosine to 0, one of a picture's views drawn each time it is shown.

    Args:
        network: trained in place; left in eval mode.
        objective: calls the network; in bfloat16 where the device has it and autocast allows.
        views: of all P pictures, V times.
        rows: what is learnt from.
        recipe: the settings.
        tell: called after each epoch with what is done, of how much, and the mean loss.
        device: where the network is.

    Raises:
        FloatingPointError: the loss is not finite.
    """
    batch = min(recipe.batch_of(len(rows)), len(rows))
    steps = math.ceil(len(rows) / batch)
    epochs = max(recipe.epochs, math.ceil(recipe.least_steps / steps))
    optimiser, schedule = _optimiser(network, recipe, epochs * steps)
    draw = torch.Generator().manual_seed(recipe.seed)
    low = has_bf16(device)
    dtype = torch.bfloat16 if low else torch.float32
    network.train()
    for epoch in range(epochs):
        total = 0.0
        for chosen in torch.randperm(len(rows), generator=draw).split(batch):
            if len(chosen) < 2:  # batch norm needs two; the row comes again next epoch
                continue
            which = torch.randint(len(views), (len(chosen),), generator=draw)
            some = rows[chosen[which.argsort(stable=True)]]  # view by view: each is read in one go
            counts = which.bincount(minlength=len(views)).tolist()
            seen = _seen(views, some.picture.split(counts), device, dtype)
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


def _seen(
    views: Sequence[Features], pictures: Sequence[Tensor], device: str, dtype: torch.dtype
) -> Features:
    """Of each view some pictures, by position: features of B in all, view by view.

    The maps in ``dtype``.
    """
    counts, first = [len(some) for some in pictures], views[0]
    maps = first.maps.new_empty(sum(counts), *first.maps.shape[1:])
    means = first.means.new_empty(sum(counts), *first.means.shape[1:])
    parts = zip(views, pictures, maps.split(counts), means.split(counts), strict=True)
    for view, some, own_maps, own_means in parts:
        torch.index_select(view.maps, 0, some, out=own_maps)
        torch.index_select(view.means, 0, some, out=own_means)
    return Features(maps.to(device, dtype), means.to(device))


def _optimiser(
    network: nn.Module, recipe: Recipe, steps: int
) -> tuple[torch.optim.AdamW, torch.optim.lr_scheduler.CosineAnnealingLR]:
    groups: list[dict[str, Any]] = []
    for pooled, rate, decay in (
        (False, recipe.rate, recipe.decay),
        (True, recipe.pooled_rate, recipe.pooled_decay),
    ):
        trained = [
            value
            for name, value in network.named_parameters()
            if value.requires_grad and reads_means(network, name) == pooled
        ]
        for matrices in (True, False):
            some = [value for value in trained if (value.ndim > 1) == matrices]
            if some:
                weight_decay = decay if matrices else 0.0
                groups.append({"params": some, "lr": rate, "weight_decay": weight_decay})
    # Fused: each step goes once over the weights, a third of a pooled network's whole time.
    optimiser = torch.optim.AdamW(groups, fused=True)
    return optimiser, torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(1, steps))


def reads_means(network: nn.Module, name: str) -> bool:
    """Does this parameter belong to a network that sees channel means? Those learn faster."""
    if not isinstance(network, FrozenHead):
        return False
    first, *rest = name.split(".")
    return first == "hidden" or (first == "score" and int(rest[0]) >= network.spatial)


def without(figures: Mapping[str, float], name: str) -> dict[str, float]:
    """All figures but one."""
    return {one: value for one, value in figures.items() if one != name}


class StoppedError(Exception):
    """Another run of the same training failed or was stopped."""


class Tally:
    """Several runs side by side, told as one; the loss is that of the last run.

    Each figure is told with ``at``, the share that its own run has done.

    When telling raises, which is how a job is cancelled, or a run fails, the others stop.
    """

    def __init__(self, report: Report, stage: str, runs: int) -> None:
        self._report = report
        self._stage = stage
        self._share = [0.0] * runs
        self._lock = threading.Lock()
        self.stop = threading.Event()

    def voice(self, number: int) -> Callable[..., None]:
        """What run ``number`` calls with what it has done, of how much, and its figures."""

        def tell(done: int, total: int, **figures: float) -> None:
            last = number == len(self._share) - 1
            with self._lock:
                if self.stop.is_set():
                    raise StoppedError
                self._share[number] = done / total
                percent = math.floor(100 * sum(self._share) / len(self._share) + 1e-9)
                try:
                    told = figures if last else without(figures, "loss")
                    at = {"at": done / total} if told else {}
                    self._report(self._stage, percent, 100, **told, **at)
                except BaseException:
                    self.stop.set()
                    raise

        return tell


def shared_out(work: Callable[[ItemT], FoundT], items: Sequence[ItemT]) -> Iterator[FoundT]:
    """``work`` of each item, in order, on as many threads as there are cores for.

    A few items ahead of what has been taken; leaving the loop early drops the rest.
    """
    threads = _cores()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="share")
    try:
        under_way: deque[Future[FoundT]] = deque()
        todo = iter(items)
        while True:
            some = islice(todo, 2 * threads - len(under_way))
            under_way.extend(pool.submit(work, one) for one in some)
            if not under_way:
                return
            yield under_way.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _cores() -> int:
    """How many things may run at a time, each on PyTorch's number of threads."""
    return max(1, (os.cpu_count() or 1) // torch.get_num_threads())


def side_by_side(runs: Sequence[Callable[[], None]], *, device: str) -> None:
    """Run them all, the last first, as many at a time as there are cores.

    One run on all cores gains little, as its steps are small, and loses eightfold when something
    else wants a core.

    Raises:
        Exception: the first that a run raised, other than being stopped because of it.
    """
    at_once = 1 if device != "cpu" else _cores()
    with ThreadPoolExecutor(at_once, thread_name_prefix="fit") as pool:
        under_way = [pool.submit(run) for run in reversed(runs)]
    wrong = [error for run in under_way if (error := run.exception()) is not None]
    for error in wrong:
        if not isinstance(error, StoppedError):
            raise error
