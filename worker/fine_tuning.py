"""Training the backbone too: HRN's blocks of the paper on pictures, not on cached features.

The published code's schedule (SGD, the backbone at a tenth of the head's rate, cosine by epoch)
with the raw tree loss. Meant for a GPU; on a CPU it works and takes long.
"""

import copy
import logging
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hierarchy import LabelTree, log_marginals, tree_loss
from hierarchy.calibration import fit_rule
from hierarchy.network import ResidualHead
from models.backbone import Backbone
from models.features import prepare
from models.galleries import tuned_fingerprint
from models.store import Project
from studio.errors import PictureError
from studio.pictures import PictureLimits, decode
from worker import trainer
from worker.folds import assign_folds
from worker.gathering import Gathered
from worker.making import Made
from worker.parts import Parts
from worker.settings import Settings

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TuneRecipe:
    """Settings of a fine-tuning, as published where the published code has them.

    Attributes:
        inner: F of the granularity blocks.
        features: width before the classifiers.
        epochs: passes over the pictures.
        batch: pictures a step; 8 in the published code at 448 px.
        rate: of the new layers; the backbone has a tenth.
        momentum: of SGD.
        decay: weight decay, on everything.
        folds: one of so many parts is held out for calibration and never trained on.
        seed: of everything drawn at random.
    """

    inner: int = 1024
    features: int = 512
    epochs: int = 30
    batch: int = 32
    rate: float = 0.002
    momentum: float = 0.9
    decay: float = 5e-4
    folds: int = 5
    seed: int = 0

    @classmethod
    def for_device(cls, device: str) -> "TuneRecipe":
        """The paper's on a GPU; on a CPU smaller blocks and few epochs, since hours help nobody."""
        return cls() if device == "cuda" else cls(inner=256, features=256, epochs=5, batch=16)

    def to_json(self) -> dict[str, Any]:
        """Plain data for a manifest."""
        return {"kind": "fine-tune", **asdict(self)}


def wanted(asked: bool | None, settings: Settings) -> bool:  # noqa: FBT001 - yes, no or not said
    """What was asked for, else the server's setting: ``auto`` is yes where there is a GPU."""
    if asked is not None:
        return asked
    if settings.fine_tune == "auto":
        return settings.device != "cpu" and torch.cuda.is_available()
    return settings.fine_tune == "on"


def fit(  # noqa: PLR0913 - the head alone takes the same, but for the recipe
    tree: LabelTree,
    gathered: Gathered,
    parts: Parts,
    project: Project,
    progress: trainer.Report,
    recipe: TuneRecipe | None = None,
) -> Made:
    """Fine-tune on all pictures but one part, which calibrates and judges.

    Args:
        tree: of the labels' nodes.
        gathered: labelled pictures; their features only decide which are held out together.
        parts: backbone and pictures come from here.
        project: its target accuracy and depth limits are obeyed.
        progress: told of every step; may raise to stop.
        recipe: the settings; None for those that suit the device.

    Raises:
        TooFewLabelsError: as for the head alone, or all pictures are one group.
        FloatingPointError: the loss is not finite.
    """
    trainer.check_enough(gathered.examples.pictures, set(gathered.examples.target.tolist()))
    device = "cuda" if parts.settings.device != "cpu" and torch.cuda.is_available() else "cpu"
    recipe = recipe or TuneRecipe.for_device(device)
    torch.manual_seed(recipe.seed)
    base = parts.galleries.backbone()
    backbone = copy.deepcopy(base.module).to(device)
    head = ResidualHead(tree, base.channels, inner=recipe.inner, features=recipe.features).to(
        device
    )
    pixels, there = _pixels(gathered.refs, parts, base, progress)
    held = _held_out(gathered.examples, recipe) & there
    learn = there & ~held
    if not learn[gathered.examples.picture].any():
        raise trainer.TooFewLabelsError(
            "all labelled pictures are one group, so none can be held out: label pictures of "
            "another group, or choose another HRN_GROUP_FIELD"
        )
    _train(backbone, head, tree, pixels, gathered.examples, learn, base, recipe, progress)
    log_p = np.full((gathered.examples.pictures, len(tree)), np.nan)
    log_p[held] = _predict(backbone, head, tree, pixels, np.flatnonzero(held), base)
    seen, metrics = trainer.judge(tree, gathered.examples, log_p)
    fitted = fit_rule(
        seen,
        target=project.target_accuracy or parts.settings.target_accuracy,
        minimum=project.minimum_depth,
        maximum=project.maximum_depth,
    )
    backbone, head = backbone.cpu().eval(), head.cpu().eval()
    mark = tuned_fingerprint(base, backbone)
    return Made(
        trainer.Trained(head, fitted, seen, metrics, log_p),
        {
            "kind": "residual",
            "channels": base.channels,
            "inner": recipe.inner,
            "features": recipe.features,
        },
        {"name": base.name, "fingerprint": mark},
        recipe.to_json(),
        dict(backbone.state_dict()),
    )


def _pixels(
    refs: Sequence[tuple[str, int]], parts: Parts, base: Backbone, progress: trainer.Report
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """``(P, 3, S, S)`` squares of the short side's length, and ``(P,)`` which of them are there.

    On disk: memory holds what is in use. A picture whose features were cached may have vanished
    since; it is left out.
    """
    side = base.preparation.resize
    whole = replace(base.preparation, crop=side)
    with tempfile.TemporaryFile() as store:  # its space is given back when the array goes
        pixels = np.memmap(store, np.uint8, "w+", shape=(len(refs), 3, side, side))
    there = np.ones(len(refs), dtype=bool)
    for at, (ref, task) in enumerate(refs):
        try:
            picture = parts.fetcher.fetch(ref, task_id=task)
            image = decode(picture.data, limits=PictureLimits(), at_least=side)
            pixels[at] = prepare(image, whole)
        except PictureError as error:
            log.warning("left out task=%d: %s", task, error.reason)
            there[at] = False
        progress("decoding", at + 1, len(refs))
    return pixels, there


def _held_out(examples: trainer.Examples, recipe: TuneRecipe) -> NDArray[np.bool_]:
    pooled = np.concatenate(
        [
            examples.read(range(at, min(at + trainer.CHUNK, examples.pictures)), False)  # noqa: FBT003
            .astype(np.float32)
            .mean(axis=(2, 3))
            for at in range(0, examples.pictures, trainer.CHUNK)
        ]
    )
    folds = assign_folds(
        pooled, examples.truth, examples.groups, folds=recipe.folds, seed=recipe.seed
    )
    held: NDArray[np.bool_] = folds == 0
    return held


def _train(  # noqa: PLR0913 - one loop's inputs
    backbone: nn.Module,
    head: nn.Module,
    tree: LabelTree,
    pixels: NDArray[np.uint8],
    examples: trainer.Examples,
    learn: NDArray[np.bool_],
    base: Backbone,
    recipe: TuneRecipe,
    progress: trainer.Report,
) -> None:
    device = next(head.parameters()).device
    rows = torch.from_numpy(np.flatnonzero(learn[examples.picture]))
    groups = [
        {"params": list(head.parameters()), "lr": recipe.rate},
        {"params": list(backbone.parameters()), "lr": recipe.rate / 10},
    ]
    optimiser = torch.optim.SGD(groups, momentum=recipe.momentum, weight_decay=recipe.decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, recipe.epochs)
    draw = torch.Generator().manual_seed(recipe.seed)
    target, weight = torch.from_numpy(examples.target), torch.from_numpy(examples.weight)
    for epoch in range(recipe.epochs):
        backbone.train()
        head.train()
        batches = rows[torch.randperm(len(rows), generator=draw)].split(recipe.batch)
        sum_loss = 0.0
        for step, chosen in enumerate(batches):
            if len(chosen) < 2:  # batch norm needs two
                continue
            at = examples.picture[chosen.numpy()]
            pictures = _augmented(torch.from_numpy(pixels[at]), base, draw).to(device)
            with torch.autocast(device.type, dtype=torch.bfloat16):
                scores = head(backbone(pictures))
            loss = tree_loss(
                scores.float(), target[chosen].to(device), tree, weights=weight[chosen].to(device)
            )
            if not torch.isfinite(loss):
                raise FloatingPointError(f"the loss became {loss.item()} in epoch {epoch + 1}")
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            sum_loss += loss.item() * len(chosen)
            progress("fine-tuning", epoch * len(batches) + step, recipe.epochs * len(batches))
        schedule.step()
        done = (epoch + 1) * len(batches)
        progress("fine-tuning", done, recipe.epochs * len(batches), loss=sum_loss / len(rows))


def _augmented(pixels: Tensor, base: Backbone, draw: torch.Generator) -> Tensor:
    """Random crop of the preparation's size, mirrored half of the time, normalised."""
    side, crop = pixels.shape[-1], base.preparation.crop
    cut = []
    for picture in pixels:
        top, left = torch.randint(side - crop + 1, (2,), generator=draw).tolist()
        part = picture[:, top : top + crop, left : left + crop]
        cut.append(part.flip(-1) if torch.rand((), generator=draw) < 0.5 else part)
    return _normalised(torch.stack(cut), base)


def _normalised(pixels: Tensor, base: Backbone) -> Tensor:
    mean, std = (
        torch.tensor(v)[:, None, None] for v in (base.preparation.mean, base.preparation.std)
    )
    return (pixels.float() / 255 - mean) / std


def _predict(  # noqa: PLR0913 - both halves of the network, and what to show them
    backbone: nn.Module,
    head: nn.Module,
    tree: LabelTree,
    pixels: NDArray[np.uint8],
    which: NDArray[np.int64],
    base: Backbone,
) -> NDArray[np.float64]:
    backbone.eval()
    head.eval()
    device = next(head.parameters()).device
    edge = (pixels.shape[-1] - base.preparation.crop) // 2
    inside = slice(edge, edge + base.preparation.crop)
    parts = []
    with torch.inference_mode():
        for at in torch.from_numpy(which).split(32):
            pictures = _normalised(torch.from_numpy(pixels[at.numpy()][:, :, inside, inside]), base)
            scores = head(backbone(pictures.to(device)).float())
            parts.append(log_marginals(scores.double(), tree).cpu())
    return torch.cat(parts).numpy() if parts else np.empty((0, len(tree)))
