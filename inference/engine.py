"""The choice of the inference engine: the fastest one here that is also right.

OpenVINO serves on CPUs (in bfloat16 where the CPU has it), PyTorch on GPUs and wherever
OpenVINO is absent or disagrees.
"""

import json
import logging
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Literal

import torch

from inference.atomic_write import write_atomic
from inference.backbone import Backbone
from inference.engine_check import MAX_ERROR, agreed_before, check_file, disagreement
from inference.errors import EngineError
from inference.openvino_engine import OpenVINOEngine
from inference.precision import has_bf16
from inference.torch_engine import Engine, EngineVectors, Pixels, TorchEngine, short_name

__all__ = ["Engine", "EngineVectors", "OpenVINOEngine", "Pixels", "TorchEngine", "make_engine"]

log = logging.getLogger(__name__)

#: The name of an engine that may be right for this machine, and what builds it.
_Candidate = tuple[str, Callable[[], Engine]]


def make_engine(
    backbone: Backbone,
    *,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    kind: Literal["auto", "openvino", "torch"] = "auto",
    cache_dir: Path | None = None,
    threads: int | None = None,
) -> Engine:
    """Build the fastest engine for this machine whose vectors agree with PyTorch in float32.

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
    for label, build in candidates:
        if (engine := _accepted(label, build, backbone, cache_dir)) is not None:
            log.info("engine=%s backbone=%s", engine.name, backbone.fingerprint)
            return engine
    raise EngineError(
        f"none of {', '.join(label for label, _ in candidates)} works for {backbone.name} here; "
        "the log says why; kind='auto' with device='cpu' falls back to PyTorch"
    )


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
    """Yield the engines that may do, the fastest first; float32 in PyTorch agrees with itself."""
    if kind not in {"auto", "openvino", "torch"}:
        raise EngineError(f"kind must be 'auto', 'openvino' or 'torch', got {kind!r}")
    if device == "cpu" and kind != "torch":
        precisions: tuple[Literal["bf16", "f32"], ...] = ("bf16", "f32")
        for precision in precisions if has_bf16(device) else precisions[1:]:
            yield (
                f"openvino-cpu-{precision}",
                partial(
                    OpenVINOEngine,
                    backbone,
                    cache_dir=cache_dir,
                    threads=threads,
                    precision=precision,
                ),
            )
    if kind != "openvino":
        fast = [torch.bfloat16] if has_bf16(device) else []
        if device == "cuda" and not fast:
            fast = [torch.float16]
        for one in (*fast, torch.float32):
            label = f"torch-{device}-{short_name(one)}"
            yield label, partial(TorchEngine, backbone, device=device, precision=one)


def _accepted(
    label: str, build: Callable[[], Engine], backbone: Backbone, cache_dir: Path | None
) -> Engine | None:
    """Build the engine; None unless it starts and agrees with PyTorch in float32."""
    file = None if cache_dir is None else check_file(label, backbone, cache_dir)
    known = None if file is None else agreed_before(file)
    if known is False:
        log.warning("engine=%s passed over: it disagreed before", label)
        return None
    try:
        engine = build()
    except EngineError as problem:
        log.warning("engine=%s passed over: %s", label, problem)
        return None
    if known or label == "torch-cpu-f32":
        return engine
    error = disagreement(engine, backbone)
    agrees = error <= MAX_ERROR
    if file is not None:
        try:
            write_atomic(file, json.dumps({"agrees": agrees, "error": error}))
        except OSError as problem:
            log.warning("cannot keep the engine's check: %s", problem)
    if agrees:
        log.info("engine=%s agrees error=%.4f", engine.name, error)
        return engine
    log.warning("engine=%s disagrees error=%.4f limit=%.4f", engine.name, error, MAX_ERROR)
    return None
