"""The loop that trains a backbone and its head together, and goes on after it was killed.

What is drawn at random follows from the seed and the step alone (the order of an epoch, each crop),
so a training that goes on from a checkpoint ends with the weights of one that was left in peace.

Letters: B images, R labels (rows), N nodes, C channels, H x W pixels, h x w the grid.
"""

import copy
import logging
import math
import os
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hierarchy import LabelTree, log_marginals, tree_loss
from hierarchy.heads import HRNHead
from inference.backbone import Backbone
from inference.torch_engine import Normalised
from worker.checkpoints import Checkpoints, digest
from worker.fitting import Report, Rows
from worker.photos import Pixels, prefetched, stacked
from worker.ranks import Ranks
from worker.tune_recipe import TuneRecipe

log = logging.getLogger(__name__)

#: Batches from which the batch norms' statistics are taken again at the end.
SETTLED_ON: Final = 32

#: Steps between two looks at whether the loss is finite: each makes a GPU wait.
LOOK_EVERY: Final = 20

#: Images judged at once.
JUDGED_AT_ONCE: Final = 64


@dataclass(frozen=True)
class Aim:
    """Objective: the loss of a network's outputs, and how they are read.

    Attributes:
        loss: float32 outputs, ``(B,)`` or ``(B, K)`` targets, ``(B,)`` weights -> scalar in nats, a
            mean over the weights.
        read: float64 outputs -> ``(B, N)`` log-probabilities.
        right: outputs and targets as for the loss -> ``(B,)`` whether the best node of the target's
            level is the target, for people who watch; None where nobody does.
    """

    loss: Callable[[Tensor, Tensor, Tensor], Tensor]
    read: Callable[[Tensor], Tensor]
    right: Callable[[Tensor, Tensor], Tensor] | None = None


def tree_aim(tree: LabelTree) -> Aim:
    """Build the objective of the tree loss on raw scores."""
    levels = torch.tensor(tree.levels)

    def right(scores: Tensor, targets: Tensor) -> Tensor:
        first = targets if targets.ndim == 1 else targets[:, 0]
        level = levels.to(scores.device)
        elsewhere = level[None, :] != level[first][:, None]
        best = log_marginals(scores, tree).masked_fill(elsewhere, -torch.inf).argmax(dim=1)
        return best == first

    return Aim(
        lambda scores, targets, weights: tree_loss(scores, targets, tree, weights=weights),
        lambda scores: log_marginals(scores, tree),
        right,
    )


class Network(nn.Module):
    """A backbone and a head as one: bytes in, the head's outputs out."""

    def __init__(self, backbone: Backbone, head: nn.Module) -> None:
        """Take a copy of the backbone, and the head itself."""
        super().__init__()
        self.backbone = Normalised(copy.deepcopy(backbone.module), backbone.preparation)
        self.head = head

    def forward(self, pixels: Tensor) -> Tensor:
        """Compute the head's outputs of ``(B, 3, H, W)`` uint8, ``(B, N)`` for most."""
        outputs: Tensor = self.head(self.backbone(pixels))
        return outputs


def tuned_head(tree: LabelTree, channels: int, recipe: TuneRecipe) -> HRNHead:
    """Build a head that trains together with a backbone of so many channels."""
    head = HRNHead(
        tree,
        channels,
        dropout=recipe.dropout,
        delta=recipe.delta,
        seed=recipe.seed,
        **recipe.sizes(),
    )
    head.seed(recipe.seed)
    return head


@dataclass(frozen=True)
class Lessons:
    """Labels, and the images to learn them from.

    Attributes:
        rows: the labels.
        show: position of a image and a text that decides what is drawn -> the image, varied.
            Called from several threads.
    """

    rows: Rows
    show: Callable[[int, str], Pixels]


@dataclass(frozen=True)
class Tuned:
    """Outcome of a fine-tuning.

    Attributes:
        steps: optimiser steps that are done, those before an interruption included.
        all_steps: of the whole recipe.
        seconds: in this process.
        labels_a_second: in this process, the loading included.
    """

    steps: int
    all_steps: int
    seconds: float
    labels_a_second: float


class Tuner:
    """One training of one network.

    Args:
        network: trained in place, on the device where it is to be trained.
        aim: what its outputs are for.
        lessons: at least two labels.
        recipe: the settings.
        device: ``cpu`` or ``cuda``.
        checkpoints: where it goes on from; None to begin and end at one go. Processes that train
            together share it.
        ranks: this process among those; alone if not given. Going on from a checkpoint then draws
            dropout again.
    """

    def __init__(  # noqa: PLR0913 - what a training is made of
        self,
        network: Network,
        aim: Aim,
        lessons: Lessons,
        recipe: TuneRecipe,
        *,
        device: str = "cpu",
        checkpoints: Checkpoints | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        self._ranks = ranks or Ranks()
        self.network = network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._aim, self._lessons, self._recipe = aim, lessons, recipe
        self._device = torch.device(device)
        self._checkpoints = checkpoints
        self._per_epoch = math.ceil(len(lessons.rows) / recipe.batch)
        epochs = max(recipe.epochs, math.ceil(recipe.least_steps / self._per_epoch))
        self.all_steps = epochs * self._per_epoch
        self._optimiser = make_optimiser(network, recipe)
        self._average = copy.deepcopy(network) if recipe.average else None
        self._joined: nn.Module = self.network
        self._step = 0
        self._loss = torch.zeros((), dtype=torch.float64)  # summed over the epoch's labels
        self._right: list[Tensor] = []  # of this process's part of the epoch

    def run(self, report: Report, *, limit: int | None = None) -> Tuned:
        """Train to the end, or so many steps; leaves the network in eval mode.

        Args:
            report: called at every step, and of the mean loss after each epoch; may raise to stop.
            limit: steps after which to stop, of a run that only tries things out.

        Raises:
            FloatingPointError: the loss is not finite.
        """
        torch.manual_seed(self._recipe.seed + self._ranks.rank)  # for networks that have dropout
        self._restore()
        self._joined = self._ranks.joined(self.network, self._device)
        self._loss = self._loss.to(self._device)
        last = self.all_steps if limit is None else min(limit, self.all_steps)
        started, first = time.monotonic(), self._step
        while self._step < last:
            self._epoch(last, report)
        seconds = time.monotonic() - started
        if self._average is not None:
            self.network.load_state_dict(self._average.state_dict())
        if self._ranks.leads:
            self._settle(min(SETTLED_ON, max(self._step, 1)))
        shown = (self._step - first) * len(self._lessons.rows) / self._per_epoch
        return Tuned(self._step, self.all_steps, seconds, shown / max(seconds, 1e-9))

    def _epoch(self, last: int, report: Report) -> None:
        """Train what is left of the epoch that the step is in, up to step ``last``."""
        epoch, done = divmod(self._step, self._per_epoch)
        chosen = self._order(epoch)[done : done + last - self._step]
        with closing(self._shown(chosen, epoch)) as shown:
            for rows, pixels in zip(chosen, shown, strict=True):
                self._learn(rows, pixels)
                due = self._step % self._per_epoch > 0 and self._due()
                if due or self._step % LOOK_EVERY == 0 or self._step == last:
                    self._check_loss(epoch)
                if due:
                    self._save()
                report("fine-tuning", self._step, self.all_steps)
        if self._step % self._per_epoch == 0:
            self._check_loss(epoch)
            loss = self._ranks.total(self._loss).item() / len(self._lessons.rows)
            self._loss.zero_()
            self._save()
            report("fine-tuning", self._step, self.all_steps, loss=loss, **self._accuracy())

    def _due(self) -> bool:
        """Tell whether to write a checkpoint now; several processes agree on it, now and then."""
        if self._checkpoints is None or (self._ranks.size > 1 and self._step % LOOK_EVERY):
            return False
        return self._ranks.agreed(self._checkpoints.due, self._device)

    def _accuracy(self) -> dict[str, float]:
        """Return the share of the epoch's images that were right before each was learnt."""
        if self._aim.right is None:
            return {}
        right = torch.cat([torch.zeros(0, device=self._device), *self._right]).double()
        self._right = []
        sums = torch.stack([right.sum(), right.new_tensor(len(right))])
        found, count = self._ranks.total(sums).tolist()
        return {"accuracy": found / count} if count else {}

    def _order(self, epoch: int) -> Sequence[Tensor]:
        """Return the rows of each step, ``(B,)``; sizes differ by one at most."""
        draw = torch.Generator().manual_seed(self._recipe.seed * 1_000_003 + epoch)
        order = torch.randperm(len(self._lessons.rows), generator=draw)
        return order.tensor_split(self._per_epoch)

    def _shown(
        self, chosen: Sequence[Tensor], epoch: int
    ) -> Generator[NDArray[np.uint8], None, None]:
        """Yield the images of each step, ``(B, 3, H, W)``, loaded while the device is busy."""
        seed, image = self._recipe.seed, self._lessons.rows.image
        if epoch >= 0:  # else the leading process looks at all of them
            chosen = [self._ranks.share(rows) for rows in chosen]

        def show(row: int) -> Pixels:
            return self._lessons.show(int(image[row]), f"{seed} {epoch} {row}")

        rows = (row for rows in chosen for row in rows.tolist())
        threads, ahead = threads_for(self._device.type), 4 * self._recipe.batch
        with closing(prefetched(rows, show, threads=threads, ahead=ahead)) as ready:
            yield from stacked(ready, map(len, chosen))

    def _learn(self, chosen: Tensor, pixels: NDArray[np.uint8]) -> None:
        """Do one step of the optimiser, in as many parts as the device needs."""
        self.network.train()
        if self._recipe.frozen_statistics:
            for norm in norms(self.network.backbone):
                norm.eval()
        factor = rate_factor(self._recipe, self._step, self.all_steps, self._per_epoch)
        for group in self._optimiser.param_groups:
            group["lr"] = group["initial_lr"] * factor
        self._optimiser.zero_grad(set_to_none=True)
        whole = self._lessons.rows[chosen].weight.sum() / self._ranks.size  # they are averaged
        rows = self._lessons.rows[self._ranks.share(chosen)]
        parts = in_parts(len(rows), self._recipe.at_once)
        for number, part in enumerate(parts, 1):
            some = rows[part]
            with self._ranks.waiting(self._joined, number == len(parts)):
                loss = self._loss_of(some, torch.from_numpy(pixels[part.numpy()]))
                (loss * (some.weight.sum() / whole).item()).backward()
            self._loss += loss.detach().double() * len(part)
        self._optimiser.step()
        self._step += 1
        if self._average is not None:
            follow(self._average, self.network, average_decay(self._recipe.average, self._step))

    def _loss_of(self, rows: Rows, pixels: Tensor) -> Tensor:
        """Return the mean loss of these labels and their images."""
        with torch.autocast(
            self._device.type, torch.bfloat16, enabled=self._recipe.precision == "bf16"
        ):
            outputs = self._joined(self._sent(pixels))
        outputs, targets = outputs.float(), self._sent(rows.target)
        if self._aim.right is not None:
            with torch.no_grad():
                self._right.append(self._aim.right(outputs.detach(), targets))
        return self._aim.loss(outputs, targets, self._sent(rows.weight))

    def _sent(self, values: Tensor) -> Tensor:
        if self._device.type == "cuda":  # from pinned memory the copy need not be waited for
            values = values.pin_memory().to(self._device, non_blocking=True)
        return values.contiguous(memory_format=torch.channels_last) if values.ndim == 4 else values

    def _check_loss(self, epoch: int) -> None:
        if not torch.isfinite(self._loss):
            raise FloatingPointError(f"the loss became {self._loss.item()} in epoch {epoch + 1}")

    def _settle(self, batches: int) -> None:
        """Take the batch norms' statistics again from training images, at the weights of now.

        Running ones lag behind the weights. See Wu and Johnson, "Rethinking Batch in BatchNorm"
        (2021), section 3.
        """
        found = norms(self.network.head if self._recipe.frozen_statistics else self.network)
        momenta = [norm.momentum for norm in found]
        self.network.eval()
        for norm in found:
            norm.reset_running_stats()
            norm.momentum = None  # each batch counts the same
            norm.train()
        chosen = self._order(0)[:batches]
        with torch.no_grad(), closing(self._shown(chosen, -1)) as shown:
            for pixels in shown:
                for part in in_parts(len(pixels), self._recipe.at_once):
                    self.network(self._sent(torch.from_numpy(pixels[part.numpy()])))
        for norm, momentum in zip(found, momenta, strict=True):
            norm.momentum = momentum
        self.network.eval()

    def _save(self) -> None:
        if self._checkpoints is None:
            return
        loss = self._ranks.total(self._loss)
        if not self._ranks.leads:
            return
        tensors = {
            **_named("network", self.network.state_dict()),
            **_named("average", self._average.state_dict() if self._average else {}),
            **_named("optimiser", optimiser_state(self._optimiser, self.network)),
            "loss": loss,
            "generator.cpu": torch.get_rng_state(),
        }
        if self._device.type == "cuda":
            tensors["generator.cuda"] = torch.cuda.get_rng_state(self._device)
        epoch, step = divmod(self._step, self._per_epoch)
        self._checkpoints.save(tensors, {"steps": self._step, "epoch": epoch, "step": step})

    def _restore(self) -> None:
        saved = self._checkpoints.load() if self._checkpoints is not None else None
        if saved is None:
            return
        self.network.load_state_dict(_part("network", saved.tensors))
        if self._average is not None:
            self._average.load_state_dict(_part("average", saved.tensors))
        set_optimiser_state(self._optimiser, self.network, _part("optimiser", saved.tensors))
        self._step = int(saved.state["steps"])
        if not self._ranks.leads:  # what was drawn and lost is the leading process's
            torch.manual_seed(self._recipe.seed + self._ranks.rank + 1_000_003 * self._step)
            return
        self._loss = saved.tensors["loss"].clone()
        torch.set_rng_state(saved.tensors["generator.cpu"])
        if "generator.cuda" in saved.tensors:
            torch.cuda.set_rng_state(saved.tensors["generator.cuda"], self._device)
        log.info("going on from step %d of %d", self._step, self.all_steps)


def identity(network: nn.Module, recipe: TuneRecipe, device: str, facts: Mapping[str, Any]) -> str:
    """Return what tells a training from others: equal ones end with the same weights.

    Args:
        network: its tensors' names and shapes count.
        recipe: all of it counts.
        device: ``cpu`` or ``cuda``.
        facts: plain data: where the weights come from, the labels, the images.
    """
    shapes = {name: list(value.shape) for name, value in network.state_dict().items()}
    known = {"shapes": shapes, "recipe": asdict(recipe), "device": device, "facts": dict(facts)}
    return digest({**known, "torch": torch.__version__})


def make_optimiser(network: Network, recipe: TuneRecipe) -> torch.optim.Optimizer:
    """Build SGD or AdamW with a rate of its own for the backbone."""
    groups = []
    for part, rate in (
        (network.head, recipe.rate),
        (network.backbone, recipe.rate * recipe.backbone_share),
    ):
        trained = [value for value in part.parameters() if value.requires_grad]
        matrices = [value for value in trained if value.ndim > 1]
        others = [value for value in trained if value.ndim <= 1]
        spared = recipe.optimiser == "adamw"
        rates = {"lr": rate, "initial_lr": rate}
        groups.append({"params": matrices, "weight_decay": recipe.decay, **rates})
        groups.append({"params": others, "weight_decay": 0 if spared else recipe.decay, **rates})
    groups = [group for group in groups if group["params"]]
    if recipe.optimiser == "adamw":
        return torch.optim.AdamW(groups)
    return torch.optim.SGD(groups, lr=recipe.rate, momentum=recipe.momentum)


def rate_factor(recipe: TuneRecipe, step: int, steps: int, per_epoch: int) -> float:
    """Return what the rates are multiplied by in a step, counted from 0.

    Example:
        >>> published = TuneRecipe(epochs=4)
        >>> [round(rate_factor(published, step, 8, 2), 2) for step in range(8)]
        [1.0, 1.0, 0.85, 0.85, 0.5, 0.5, 0.15, 0.15]
    """
    if recipe.optimiser == "sgd":
        step -= step % per_epoch  # once an epoch, as published
    rising = recipe.warm_up * steps
    if step < rising:
        return (step + 1) / (rising + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / (steps - rising)))


def average_decay(most: float, step: int) -> float:
    """Return the running average's decay after ``step`` steps: less at first."""
    return min(most, (1 + step) / (10 + step))


@torch.no_grad()
def follow(average: nn.Module, network: nn.Module, decay: float) -> None:
    """Move each of the average's tensors towards the network's; counters are copied."""
    now = network.state_dict()
    for name, value in average.state_dict().items():
        if value.is_floating_point():
            value.lerp_(now[name], 1 - decay)
        else:
            value.copy_(now[name])


def in_parts(count: int, most: int) -> Sequence[Tensor]:
    """Split 0 to ``count`` in parts of at most ``most``, alike in size, none of one alone.

    Example:
        >>> [part.tolist() for part in in_parts(5, 4)]
        [[0, 1, 2], [3, 4]]
    """
    return torch.arange(count).tensor_split(math.ceil(count / most))


def norms(module: nn.Module) -> list[nn.BatchNorm1d | nn.BatchNorm2d]:
    """Return the batch norms that keep statistics, timm's own kinds included."""
    return [
        part
        for part in module.modules()
        if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d) and part.track_running_stats
    ]


def optimiser_state(optimiser: torch.optim.Optimizer, network: nn.Module) -> dict[str, Tensor]:
    """Return what the optimiser knows of each weight, by ``<weight>.<what>``."""
    names = {id(value): name for name, value in network.named_parameters()}
    return {
        f"{names[id(weight)]}.{what}": value
        for weight, known in optimiser.state.items()
        for what, value in known.items()
        if isinstance(value, Tensor)
    }


def set_optimiser_state(
    optimiser: torch.optim.Optimizer, network: nn.Module, known: Mapping[str, Tensor]
) -> None:
    """Take back what `optimiser_state` gave."""
    weights = dict(network.named_parameters())
    for full, value in known.items():
        name, _, what = full.rpartition(".")
        weight = weights[name]
        if (
            value.ndim and value.shape == weight.shape
        ):  # in the weight's own layout, as the optimiser made it
            value = torch.empty_like(weight).copy_(value)  # noqa: PLW2901
        optimiser.state[weight][what] = value


def predict(
    network: Network,
    aim: Aim,
    show: Callable[[int], Pixels],
    images: Iterable[int],
    *,
    device: str = "cpu",
) -> NDArray[np.float64]:
    """Predict ``(n, ...)`` log-probabilities of images, in order, in float32 as served.

    Args:
        network: on the device.
        aim: how its outputs are read.
        show: position of a image -> the plain image; called from several threads.
        images: n positions, at least one.
        device: ``cpu`` or ``cuda``.
    """
    network.eval()
    positions = list(images)
    sizes = [len(part) for part in torch.arange(len(positions)).split(JUDGED_AT_ONCE)]
    ready = prefetched(positions, show, threads=threads_for(device), ahead=4 * JUDGED_AT_ONCE)
    with torch.inference_mode(), closing(ready):
        found = [
            aim.read(network(torch.from_numpy(pixels).to(device)).double()).cpu()
            for pixels in stacked(ready, sizes)
        ]
    return torch.cat(found).numpy()


def threads_for(device: str) -> int:
    """Return how many threads load images; none on a CPU, which the network keeps busy."""
    return 0 if device == "cpu" else min(16, os.cpu_count() or 1)


def _named(part: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{part}.{name}": value for name, value in tensors.items()}


def _part(part: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    start = f"{part}."
    return {n.removeprefix(start): v for n, v in tensors.items() if n.startswith(start)}
