"""One training on several devices: a process each, which share every step's images.

A process trains on its share of each batch, and gradients are added up before the step, so that
all hold the same weights: those of one process with the same batch, but for batch norms, which
see their own share (as they see the parts of a batch that does not fit one device).
"""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together.

    Attributes:
        rank: its number; 0 reports, keeps checkpoints and has the last word.
        size: how many there are.
    """

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Is it the one that speaks for all?"""
        return self.rank == 0

    def share(self, rows: Tensor) -> Tensor:
        """Return this process's part of a step's rows, ``(B,)`` -> about ``(B / size,)``."""
        return rows.tensor_split(self.size)[self.rank]

    def total(self, value: Tensor) -> Tensor:
        """Sum over all processes; each has to ask."""
        if self.size == 1:
            return value
        summed = value.clone()
        torch.distributed.all_reduce(summed)
        return summed

    def agreed(self, flag: bool, device: torch.device) -> bool:  # noqa: FBT001 - it is all there is to say
        """Return what the leading process says; each has to ask."""
        if self.size == 1:
            return flag
        value = torch.tensor(int(flag), device=device)
        torch.distributed.broadcast(value, 0)
        return bool(value.item())

    def joined(self, network: nn.Module, device: torch.device) -> nn.Module:
        """Return the network with its gradients averaged over all processes."""
        if self.size == 1:
            return network
        on = [device.index or 0] if device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(
            network, device_ids=on, gradient_as_bucket_view=True
        )

    def waiting(self, joined: nn.Module, last: bool) -> AbstractContextManager[Any]:  # noqa: FBT001
        """Average gradients with the last part of a batch only."""
        if self.size == 1 or last:
            return nullcontext()
        assert isinstance(joined, nn.parallel.DistributedDataParallel)  # noqa: S101 - from `joined`
        return joined.no_sync()


@contextmanager
def gathered() -> Iterator[tuple[Ranks, torch.device]]:
    """Join the process group that torchrun started; yield this process's place and device.

    On GPUs they speak by NCCL, elsewhere by Gloo.
    """
    rank, local = int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])
    on_gpu = torch.cuda.is_available() and os.environ.get("HRN_DEVICE") != "cpu"
    device = torch.device("cuda", local) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    torch.distributed.init_process_group("nccl" if on_gpu else "gloo")
    try:
        yield Ranks(rank, int(os.environ["WORLD_SIZE"])), device
    finally:
        torch.distributed.destroy_process_group()
