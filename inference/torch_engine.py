"""PyTorch as an inference engine, and what every engine shares: types, shapes, normalisation.

B images, C channels; H, W pixels.
"""

import copy
from collections.abc import Iterator
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from inference.backbone import Backbone, PooledFeatures, Preparation
from inference.precision import cpu_has_bf16

#: ``(B, 3, H, W)`` red, green, blue, 0 to 255.
Pixels = npt.NDArray[np.uint8]
#: ``(B, C)``.
EngineVectors = npt.NDArray[np.float32]

#: Images in one pass. On CPUs 8 is where throughput peaks; 32 spill out of the caches.
CPU_BATCH: Final = 8
CUDA_BATCH: Final = 64


class Normalised(nn.Module):
    """A network that takes bytes: scaling, mean and deviation are its first layer."""

    scale: Tensor
    shift: Tensor

    def __init__(self, module: nn.Module, preparation: Preparation) -> None:
        """Take a network in eval mode."""
        super().__init__()
        mean, std = torch.tensor(preparation.mean), torch.tensor(preparation.std)
        self.module = module
        self.register_buffer("scale", (1 / (255 * std)).reshape(1, 3, 1, 1))
        self.register_buffer("shift", (-mean / std).reshape(1, 3, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        """``(B, 3, H, W)`` uint8 -> what the network makes of it."""
        found: Tensor = self.module(pixels.to(torch.float32) * self.scale + self.shift)
        return found

    @classmethod
    def of(cls, backbone: Backbone) -> "Normalised":
        """Build a copy of a backbone's network, from bytes to feature vectors, to run alone."""
        pooled = PooledFeatures(copy.deepcopy(backbone.module))
        return cls(pooled, backbone.preparation).eval()


class Engine(Protocol):
    """Pixels in, feature vectors out; may be called from several threads."""

    @property
    def name(self) -> str:
        """The engine's name, for logs and people."""
        ...

    def vectors(self, batch: Pixels) -> EngineVectors:
        """Compute the feature vectors of ``(B, 3, H, W)`` uint8 images, ``(B, C)``; any B."""
        ...


class TorchEngine(Engine):
    """PyTorch, on CPU or CUDA, with a copy of the backbone's weights of its own."""

    def __init__(
        self, backbone: Backbone, *, device: str = "cpu", precision: torch.dtype = torch.float32
    ) -> None:
        """Copy the weights to ``device``; a lower ``precision`` is used through autocast."""
        self._name = f"torch-{device}-{short_name(precision)}"
        self._backbone = backbone
        self._device = torch.device(device)
        self._precision = precision
        self._batch = CPU_BATCH if self._device.type == "cpu" else CUDA_BATCH
        module = Normalised.of(backbone)
        # Convolutions are about twice as fast with channels last, on both devices.
        self._module = module.to(self._device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    @property
    def name(self) -> str:
        """See `Engine.name`."""
        return self._name

    def vectors(self, batch: Pixels) -> EngineVectors:
        """See `Engine.vectors`."""
        out = empty_vectors(batch, self._backbone)
        for rows in slices(len(batch), self._batch):
            out[rows] = self._pass(batch[rows])
        return out

    def _pass(self, batch: Pixels) -> EngineVectors:
        # PyTorch warns about arrays that it might write to and may not.
        pixels = torch.from_numpy(np.require(batch, requirements=["C", "W"])).to(self._device)
        low = self._precision != torch.float32
        with (
            torch.inference_mode(),
            torch.autocast(self._device.type, self._precision if low else None, enabled=low),
        ):
            vectors: EngineVectors = self._module(pixels).float().cpu().numpy()
        return vectors


def empty_vectors(batch: Pixels, backbone: Backbone) -> EngineVectors:
    """Make an array for the batch's vectors.

    Raises:
        ValueError: the batch has another shape than the backbone takes.
    """
    crop = backbone.preparation.crop
    if batch.dtype != np.uint8 or batch.shape[1:] != (3, crop, crop):
        raise ValueError(f"expected (B, 3, {crop}, {crop}) uint8, got {batch.shape} {batch.dtype}")
    return np.empty((len(batch), backbone.channels), np.float32)


def slices(length: int, step: int) -> Iterator[slice]:
    """Yield 0..length in steps; the last may reach beyond."""
    return (slice(start, start + step) for start in range(0, length, step))


def short_name(precision: torch.dtype) -> str:
    """Name a precision as OpenVINO does."""
    return {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}[precision]


def cpu_name() -> str:
    """Describe what of the processor may change an engine's answers."""
    capabilities = torch.cpu.get_capabilities()
    return f"{capabilities.get('cpu_name')} {capabilities.get('architecture')} {cpu_has_bf16()}"
