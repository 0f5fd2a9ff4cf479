"""OpenVINO as an inference engine: conversion, the converted network on disk, no telemetry."""

import hashlib
import logging
import os
import queue
import re
import shutil
import sys
import tempfile
import threading
import warnings
from collections import deque
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import torch

from inference.backbone import Backbone
from inference.errors import EngineError
from inference.torch_engine import (
    CPU_BATCH,
    Engine,
    EngineVectors,
    Normalised,
    Pixels,
    empty_vectors,
    slices,
)

log = logging.getLogger(__name__)


#: Parts of a batch that are worked on side by side, each by its share of the threads: a fifth
#: quicker than all threads on one part, and far less in the way of whatever else wants a core. Each
#: has some 40 MB of its own.
STREAMS: Final = 4

#: Held by who speaks to OpenVINO's binding, though not while a part is computed: it makes tables
#: when they are first asked for, and of two threads that ask at once one waits for the table and
#: the other, which makes it, for the interpreter's lock: a deadlock.
_BINDING: Final = threading.Lock()


#: What converted networks give: releases before had maps.
OUTPUT: Final = "vectors"


class OpenVINOEngine(Engine):
    """OpenVINO on the CPU.

    The converted network is kept in ``cache_dir``, so that later starts take milliseconds.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        cache_dir: Path | None = None,
        threads: int | None = None,
        precision: Literal["bf16", "f32"] = "f32",
    ) -> None:
        """Convert, or read from ``cache_dir``, and compile.

        Args:
            backbone: what to run.
            cache_dir: a folder that may be shared and may be removed at any time.
            threads: CPU threads; OpenVINO's own choice if ``None``.
            precision: what layers compute in.

        Raises:
            EngineError: OpenVINO is not installed, or cannot run this network.
        """
        ov = load_openvino()
        self._name = f"openvino-cpu-{precision}"
        self._backbone = backbone
        threads = threads or os.cpu_count() or 1
        streams = min(threads, STREAMS)
        settings = {
            "INFERENCE_PRECISION_HINT": precision,
            "INFERENCE_NUM_THREADS": str(threads),
            "NUM_STREAMS": str(streams),
        }
        try:
            core = ov.Core()
            model = _cached_model(ov, core, backbone, cache_dir)
            compiled = core.compile_model(model, "CPU", settings)
            self._idle: queue.SimpleQueue[Any] = queue.SimpleQueue()
            for _ in range(streams):
                self._idle.put(compiled.create_infer_request())
        except RuntimeError as error:
            raise EngineError(f"OpenVINO cannot run {backbone.name}: {error}") from error
        self._streams = streams
        self._helpers = ThreadPoolExecutor(max(1, streams - 1), thread_name_prefix="openvino")

    @property
    def name(self) -> str:
        """See `Engine.name`."""
        return self._name

    def vectors(self, batch: Pixels) -> EngineVectors:
        """See `Engine.vectors`. Calls at the same time take turns, a part each."""
        out = empty_vectors(batch, self._backbone)
        pixels = np.ascontiguousarray(batch)
        parts = deque(slices(len(batch), part_size(len(batch), self._streams)))
        helpers = [
            self._helpers.submit(self._work_off, parts, pixels, out)
            for _ in range(min(self._streams, len(parts)) - 1)
        ]
        try:
            self._work_off(parts, pixels, out)
        finally:  # after an interruption: nobody needs what is left
            parts.clear()
            wait(helpers)
        for helper in helpers:
            helper.result()
        return out

    def _work_off(self, parts: deque[slice], pixels: Pixels, out: EngineVectors) -> None:
        """Compute one part after another until none is left, each with whatever stream is free."""
        while True:
            try:
                rows = parts.popleft()
            except IndexError:
                return
            request = self._idle.get()
            try:
                with _BINDING:
                    request.start_async({0: pixels[rows]}, share_inputs=True)
                request.wait()
                with _BINDING:
                    out[rows] = request.get_output_tensor(0).data
            finally:  # after an interruption: what is still read may not be given back
                request.wait()
                self._idle.put(request)


def part_size(images: int, streams: int) -> int:
    """Choose how many images to compute in one go: as many for each stream, few at a time."""
    return min(CPU_BATCH, max(1, -(-images // streams)))


def load_openvino() -> Any:  # noqa: ANN401 - it has no types
    """Import the package without its telemetry, which would report each import to its makers."""
    # It reports unless it finds no reporter; this must precede the first import.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    try:
        import openvino
    except ImportError as error:
        raise EngineError("OpenVINO is not installed: pip install openvino") from error
    return openvino


def _cached_model(ov: Any, core: Any, backbone: Backbone, cache_dir: Path | None) -> Any:  # noqa: ANN401
    """Read the converted network from the cache, or convert it and keep it there."""
    if cache_dir is None:
        return _convert(ov, backbone)
    version = re.sub(r"[^\w.]+", "-", str(ov.get_version()))
    folder = cache_dir / f"{backbone.fingerprint}-openvino-{version}-{OUTPUT}"
    if _is_whole(folder):
        return core.read_model(folder / "model.xml")
    model = _convert(ov, backbone)
    try:
        _keep(ov, model, folder)
    except (OSError, RuntimeError) as problem:
        log.warning("cannot keep the converted network: %s", problem)
    return model


def _convert(ov: Any, backbone: Backbone) -> Any:  # noqa: ANN401
    """Convert the network for OpenVINO, for any number of images at once."""
    crop = backbone.preparation.crop
    module = Normalised.of(backbone)
    with warnings.catch_warnings(), torch.no_grad():
        # torch.jit.trace is deprecated, but the other way, torch.export, takes four times as long.
        warnings.simplefilter("ignore")
        return ov.convert_model(
            module,
            example_input=torch.zeros(2, 3, crop, crop, dtype=torch.uint8),
            input=[ov.PartialShape([-1, 3, crop, crop])],
        )


def _keep(ov: Any, model: Any, folder: Path) -> None:  # noqa: ANN401
    """Write the network and its checksum atomically."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix="part-", dir=folder.parent))
    try:
        ov.save_model(model, part / "model.xml", compress_to_fp16=False)
        (part / "checksum").write_text(_checksum(part))
        if folder.exists() and not _is_whole(folder):
            shutil.rmtree(folder)
        with suppress(OSError):  # another process was first, with the same
            part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _is_whole(folder: Path) -> bool:
    try:
        return (folder / "checksum").read_text() == _checksum(folder)
    except OSError:
        return False


def _checksum(folder: Path) -> str:
    digest = hashlib.sha256((folder / "model.xml").read_bytes())
    digest.update((folder / "model.bin").read_bytes())
    return digest.hexdigest()
