"""Runs a backbone as fast as this machine can, and checks that fast is also right.

OpenVINO serves on CPUs (in bfloat16 where the CPU has it), PyTorch on GPUs and wherever
OpenVINO is absent or disagrees.
"""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from inference.agreement import MAX_ERROR, Verdict, disagreement
from inference.backbone import Backbone
from inference.errors import EngineError
from inference.openvino_engine import OpenVINOEngine
from inference.precision import has_bf16
from inference.torch_engine import Engine, EngineVectors, Pixels, TorchEngine, short_name

__all__ = ["Engine", "EngineVectors", "OpenVINOEngine", "Pixels", "TorchEngine", "make_engine"]

log = logging.getLogger(__name__)


def make_engine(
    backbone: Backbone,
    *,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    kind: Literal["auto", "openvino", "torch"] = "auto",
    cache_dir: Path | None = None,
    threads: int | None = None,
) -> Engine:
    """The fastest engine for this machine whose vectors agree with PyTorch in float32.

    The comparison is made on the first start (about a second) and its result kept in
    ``cache_dir``. An engine that disagrees, or cannot start, is passed over with a log line.

    Args:
        backbone: what to run.
        device: ``auto`` takes a GPU where there is one.
        kind: ``auto`` takes OpenVINO on CPUs, PyTorch on GPUs.
        cache_dir: keeps converted networks and results of comparisons.
        threads: CPU threads for OpenVINO. PyTorch's number belongs to the process
            (``torch.set_num_threads``, ``OMP_NUM_THREADS``).

    Raises:
        EngineError: what was asked for by name is not to be had here.
    """
    target = _device(device)
    if target == "cuda" and kind == "openvino":
        raise EngineError("OpenVINO runs on the CPU here: ask for device='cpu' or kind='torch'")
    candidates = list(_candidates(backbone, target, kind, cache_dir, threads))
    for candidate in candidates:
        if (engine := _accepted(candidate, backbone, cache_dir)) is not None:
            log.info("engine=%s backbone=%s", engine.name, backbone.fingerprint)
            return engine
    raise EngineError(
        f"none of {', '.join(c.label for c in candidates)} works for {backbone.name} here; "
        "the log says why; kind='auto' with device='cpu' falls back to PyTorch"
    )


@dataclass(frozen=True)
class _Candidate:
    """An engine that may be right for this machine."""

    label: str
    build: Callable[[], Engine]


def _device(asked: str) -> str:
    there = torch.cuda.is_available()
    if asked == "auto":
        return "cuda" if there else "cpu"
    if asked == "cuda" and not there:
        raise EngineError(
            "device 'cuda' was asked for, but PyTorch sees no GPU: check the driver and that "
            "PyTorch is a CUDA build (torch.version.cuda), or ask for 'auto' or 'cpu'"
        )
    if asked not in {"cpu", "cuda"}:
        raise EngineError(f"device must be 'auto', 'cpu' or 'cuda', got {asked!r}")
    return asked


def _candidates(
    backbone: Backbone, device: str, kind: str, cache_dir: Path | None, threads: int | None
) -> Iterator[_Candidate]:
    """Fastest first; the last for PyTorch is float32, which agrees with itself."""
    if kind not in {"auto", "openvino", "torch"}:
        raise EngineError(f"kind must be 'auto', 'openvino' or 'torch', got {kind!r}")

    def openvino(precision: Literal["bf16", "f32"]) -> _Candidate:
        return _Candidate(
            f"openvino-cpu-{precision}",
            lambda: OpenVINOEngine(
                backbone, cache_dir=cache_dir, threads=threads, precision=precision
            ),
        )

    def pytorch(precision: torch.dtype) -> _Candidate:
        return _Candidate(
            f"torch-{device}-{short_name(precision)}",
            lambda: TorchEngine(backbone, device=device, precision=precision),
        )

    if device == "cpu" and kind != "torch":
        if has_bf16(device):
            yield openvino("bf16")
        yield openvino("f32")
    if kind != "openvino":
        if device == "cuda":
            yield pytorch(torch.bfloat16 if has_bf16(device) else torch.float16)
        elif has_bf16(device):
            yield pytorch(torch.bfloat16)
        yield pytorch(torch.float32)


def _accepted(candidate: _Candidate, backbone: Backbone, cache_dir: Path | None) -> Engine | None:
    """The engine, if it starts and agrees with PyTorch in float32."""
    verdict = Verdict.of(candidate.label, backbone, cache_dir)
    known = verdict.read()
    if known is False:
        log.warning("engine=%s passed over: it disagreed before", candidate.label)
        return None
    try:
        engine = candidate.build()
    except EngineError as error:
        log.warning("engine=%s passed over: %s", candidate.label, error)
        return None
    if known or candidate.label == "torch-cpu-f32":
        return engine
    off = disagreement(engine, backbone)
    verdict.write(agrees=off <= MAX_ERROR, error=off)
    if off <= MAX_ERROR:
        log.info("engine=%s agrees error=%.4f", engine.name, off)
        return engine
    log.warning("engine=%s disagrees error=%.4f limit=%.4f", engine.name, off, MAX_ERROR)
    return None
