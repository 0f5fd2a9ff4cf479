"""Is heat where the evidence is? What a picture loses when its hottest places are taken away.

    python -m benchmarks.heatmaps --data ../shared/data/grocery --json heatmaps.json

Trains the default head on the training photos (their features are computed first if they are not
cached), then takes some of other photos' places away and sees how far the log-odds of each level's
best node fall: the hottest places by the product's heat (HiRes-CAM) and by Grad-CAM, random ones,
and the coldest. Once as positions of the feature map, which get their channels' mean over training
photos, and once as squares of the picture, which get its mean colour, so that the backbone looks
anew.

B pictures, C channels, H x W the map's grid, N nodes, L levels.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

from evaluation.album import Album
from evaluation.data import Dataset, load
from evaluation.evaluation import machine
from evaluation.material import gather
from hierarchy import LabelTree, log_marginals
from hierarchy.heatmap import level_heat, log_odds_gradient
from hierarchy.network import FrozenHead
from inference.backbone import Backbone, load_backbone
from inference.engine import Engine, make_engine
from inference.features import prepare
from studio.image_decoder import ImageLimits, decode
from worker import trainer
from worker.fitting import Rows
from worker.recipe import Recipe

#: Pictures that the backbone is shown at once.
BATCH = 10

#: How places are chosen: from ``(B, H, W)`` HiRes-CAM and Grad-CAM heat to what is taken first.
CHOICES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "hottest, HiRes-CAM": lambda heat, _: heat,
    "hottest, Grad-CAM": lambda _, rival: rival,
    "random": lambda heat, _: torch.zeros_like(heat),
    "coldest, HiRes-CAM": lambda heat, _: -heat,
    "coldest, Grad-CAM": lambda _, rival: -rival,
}


@dataclass(frozen=True, eq=False)
class Scene:
    """A head, and the pictures that it is asked about.

    Attributes:
        tree: the N nodes.
        head: trained, in eval mode.
        engine: the backbone.
        pixels: ``(B, 3, S, S)`` uint8, as the backbone is shown them.
    """

    tree: LabelTree
    head: FrozenHead
    engine: Engine
    pixels: Tensor

    def maps(self, pixels: Tensor) -> Tensor:
        """``(B, 3, S, S)`` uint8 pictures -> ``(B, C, H, W)`` float32 maps."""
        parts = [self.engine.maps(some.numpy()) for some in pixels.split(BATCH)]
        return torch.from_numpy(np.concatenate(parts)).float()


def default_head(dataset: Dataset, album: Album, seed: int) -> FrozenHead:
    """The head that a project with all training photos labelled would get."""
    recipe = replace(Recipe(), seed=seed)
    material = gather(dataset, album, recipe, tests=(), tell=_tell)
    targets = torch.from_numpy(material.targets)
    rows = Rows(torch.arange(len(targets)), targets, torch.ones(len(targets)))
    head = trainer.new_head(dataset.tree, material.reduction, recipe)
    trainer.learn(
        head,
        trainer.Lesson(dataset.tree, material.views, rows),
        recipe,
        lambda done, total, **_: _tell("fitting", done, total),
    )
    return head.eval()


def shown(files: list[Path], backbone: Backbone) -> Tensor:
    """Photos as the backbone is shown them, ``(B, 3, S, S)`` uint8."""
    pictures = [decode(file.read_bytes(), limits=ImageLimits()) for file in files]
    return torch.from_numpy(np.stack([prepare(one, backbone.preparation) for one in pictures]))


def log_odds(scores: Tensor, nodes: Tensor, tree: LabelTree) -> Tensor:
    """``(B, N)`` scores and ``(B,)`` nodes -> ``(B,)`` log-odds in nats, float64.

    Beyond what float64 tells from certain (36.7 nats) all are alike.
    """
    sure = log_marginals(scores.double(), tree).gather(1, nodes[:, None])[:, 0]
    least = torch.finfo(torch.float64).eps / 2
    return sure - (-torch.expm1(sure)).clamp_min(least).log()


def grad_cam(head: FrozenHead, maps: Tensor, nodes: Tensor, tree: LabelTree) -> Tensor:
    """``(B, H, W)`` of the log-odds; Selvaraju et al. 2017, equations 1 and 2.

    Beside HiRes-CAM it averages each channel's gradient over positions first.
    """
    inputs = maps.clone().requires_grad_()
    scores = head(inputs)
    upstream = log_odds_gradient(scores, nodes, tree).to(scores)
    (gradient,) = torch.autograd.grad(scores, inputs, upstream)
    return (gradient.mean(dim=(2, 3), keepdim=True) * maps).sum(dim=1).relu()


def first(wanted: Tensor, count: int, draw: torch.Generator) -> Tensor:
    """Where ``(B, H, W)`` is greatest, ``count`` places each, ties by lot: bool."""
    flat = wanted.flatten(1)
    lot = torch.rand(flat.shape, generator=draw).argsort(dim=1)
    order = lot.gather(1, flat.gather(1, lot).argsort(dim=1, descending=True, stable=True))
    taken = torch.zeros_like(flat, dtype=torch.bool).scatter_(1, order[:, :count], value=True)
    return taken.view_as(wanted)


def without(scene: Scene, maps: Tensor, taken: Tensor, means: Tensor) -> dict[str, Tensor]:
    """Scores when ``(B, H, W)`` places are taken away, from the map and from the picture.

    Args:
        scene: head and pictures.
        maps: ``(B, C, H, W)`` of the whole pictures.
        taken: bool.
        means: ``(C,)`` what a position of the map gets instead.

    Returns:
        ``(B, N)`` of each.
    """
    squares = interpolate(taken[:, None].float(), scene.pixels.shape[2:], mode="nearest").bool()
    colour = scene.pixels.float().mean(dim=(2, 3), keepdim=True).round().to(torch.uint8)
    poorer = scene.maps(torch.where(squares, colour, scene.pixels))
    with torch.no_grad():
        return {
            "map": scene.head(torch.where(taken[:, None], means[:, None, None], maps)),
            "picture": scene.head(poorer),
        }


def falls(scene: Scene, count: int, seed: int) -> dict[str, dict[str, list[NDArray[np.float64]]]]:
    """Fall of each picture's log-odds in nats: by what is cut, by choice, by level, ``(B,)``."""
    draw = torch.Generator().manual_seed(seed)
    maps, means = scene.maps(scene.pixels), scene.head.centre
    heat = level_heat(scene.head, maps, scene.tree)
    with torch.no_grad():
        scores = scene.head(maps)
    found: dict[str, dict[str, list[NDArray[np.float64]]]] = {}
    for level in range(scene.tree.depth):
        nodes = heat.nodes[:, level]
        before = log_odds(scores, nodes, scene.tree)
        rival = grad_cam(scene.head, maps, nodes, scene.tree)
        for name, choice in CHOICES.items():
            taken = first(choice(heat.heat[:, level], rival), count, draw)
            for what, after in without(scene, maps, taken, means).items():
                fall = before - log_odds(after, nodes, scene.tree)
                found.setdefault(what, {}).setdefault(name, []).append(fall.numpy())
        _tell("taking away", level + 1, scene.tree.depth)
    return found


def summary(levels: list[NDArray[np.float64]]) -> list[dict[str, float]]:
    """Mean and its standard error for each level, in nats."""
    return [
        {
            "mean": round(float(fall.mean()), 3),
            "error": round(float(fall.std(ddof=1) / len(fall) ** 0.5), 3),
        }
        for fall in levels
    ]


def table(found: dict[str, dict[str, list[NDArray[np.float64]]]]) -> dict[str, dict[str, Any]]:
    """All choices, and by how much HiRes-CAM's falls are larger, picture by picture."""
    told: dict[str, dict[str, Any]] = {}
    for what, choices in found.items():
        told[what] = {name: summary(levels) for name, levels in choices.items()}
        pairs = zip(choices["hottest, HiRes-CAM"], choices["hottest, Grad-CAM"], strict=True)
        told[what]["HiRes-CAM - Grad-CAM"] = summary([ours - theirs for ours, theirs in pairs])
    return told


def _tell(stage: str, done: int, total: int) -> None:
    if done == total:
        print(f"{stage}: {done} done", flush=True)


def main() -> None:
    """Train, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--cache", type=Path, default=Path("var/evaluation"))
    parser.add_argument("--backbone", default="tf_efficientnet_lite0")
    parser.add_argument("--split", choices=("val", "test"), default="val")
    parser.add_argument("--pictures", type=int, default=100)
    parser.add_argument("--places", type=int, default=10, help="of the map's grid, taken away")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    dataset, backbone = load(asked.data), load_backbone(asked.backbone)
    head = default_head(dataset, Album(backbone, asked.cache), asked.seed)
    files = (dataset.val if asked.split == "val" else dataset.test).files
    drawn = np.random.default_rng(asked.seed).permutation(len(files))[: asked.pictures]
    pixels = shown([files[at] for at in np.sort(drawn)], backbone)
    engine = make_engine(backbone, cache_dir=asked.cache / "engines")
    told = table(falls(Scene(dataset.tree, head, engine, pixels), asked.places, asked.seed))
    for what, choices in told.items():
        print(f"\n{asked.places} places of the {what}: mean fall in nats, top level first")
        for name, levels in choices.items():
            cells = [f"{one['mean']:7.2f} +- {one['error']:.2f}" for one in levels]
            print(f"{name:22}" + "".join(cells))
    if asked.json:
        settings = {"split": asked.split, "pictures": len(pixels), "places": asked.places}
        result = {"machine": machine(), **settings, "seed": asked.seed, "falls": told}
        asked.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
