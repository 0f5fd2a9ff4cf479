"""Is heat where the evidence is? What an image loses when its hottest places are taken away.

    python -m benchmarks.saliency --data ../shared/data/grocery --json saliency.json

Trains the product's head on the training images, then takes some of other images' places away and
sees how far the log-odds of each level's best node fall: the hottest places by the product's
saliency maps, random ones, and the coldest. Places are squares of the image, which get its mean
colour, so that the networks look again. On vectors Grad-CAM (Selvaraju et al. 2017) and HiRes-CAM
are the same map: a vector is the mean of a map, so all positions have one gradient.

n images, L levels; a grid of SIDE x SIDE squares per image.
"""

import hashlib
import io
import os
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from benchmarks.common import arguments, report, sure_rule
from evaluation.data import load
from evaluation.features import Extraction, extract, open_image, reference_of
from evaluation.methods import fit_hrn
from evaluation.protocols import Degradation
from hierarchy import LabelTree
from hierarchy.heads import HRNHead
from inference.feature_extractor import FeatureExtractor
from inference.insight import path_of
from inference.predictor import Predictor
from inference.saliency import last_maps, node_heats, seen_part, spread
from studio.image_fetcher import FetchedImage
from worker.fitting import Rows
from worker.settings import Settings
from worker.training_config import TrainingConfig

Floats = NDArray[np.float64]

#: Squares along each side of an image, and pixels of one.
SIDE: Final = 7
SQUARE: Final = 46

#: How places are chosen: what the heat, and a draw at random, count for.
CHOICES: Final = {"hottest": (1.0, 0.0), "random": (0.0, 1.0), "coldest": (-1.0, 0.0)}


def predictor_of(head: HRNHead, tree: LabelTree) -> Predictor:
    """Wrap a head as a version that shows whatever is likeliest."""
    return Predictor(
        version="v1",
        tree=tree,
        head=head,
        rule=sure_rule(tree),
        backbone=("", ""),
        backbone_weights={},
    )


def as_picture(pixels: NDArray[np.uint8]) -> FetchedImage:
    """Pack ``(S, S, 3)`` pixels without loss."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=1)
    return FetchedImage(hashlib.sha256(file.getvalue()).hexdigest(), file.getvalue())


def square(image: FetchedImage, extractor: FeatureExtractor) -> NDArray[np.uint8]:
    """Decode the middle of an image, ``(S, S, 3)`` with S = SIDE x SQUARE."""
    side = SIDE * SQUARE
    image = extractor.decoded(image, at_least=side)
    left, top = ((size - min(image.size)) // 2 for size in image.size)
    middle = image.crop((left, top, left + min(image.size), top + min(image.size)))
    return np.asarray(middle.resize((side, side)))


def heat_of(predictor: Predictor, extractor: FeatureExtractor, image: FetchedImage) -> Floats:
    """Return the heat of each square for each node on the way to the best leaf, ``(L, SIDE^2)``."""
    vector = extractor.vectors_of_image(image)
    log_p = predictor.log_probabilities(vector[None])
    path = path_of(predictor, log_p[0], predictor.told(log_p)[0].path)
    size = SIDE * SQUARE
    total = np.zeros((len(path), size, size))
    heats = node_heats(predictor, vector, path, last_maps(extractor, image))
    for heat, network in zip(heats, extractor.networks, strict=True):
        part = seen_part((size, size), network.backbone.preparation)
        total += np.stack([spread(one, part, (size, size)) for one in heat])
    squares = total.reshape(len(path), SIDE, SQUARE, SIDE, SQUARE).mean(axis=(2, 4))
    found: Floats = squares.reshape(len(path), -1)
    return found


def log_odds(predictor: Predictor, vectors: NDArray[np.float16], nodes: list[int]) -> Floats:
    """``(n, C)`` vectors and ``(n,)`` nodes -> ``(n,)`` log-odds in nats."""
    sure = predictor.log_probabilities(vectors)[np.arange(len(nodes)), nodes]
    least = np.finfo(np.float64).eps / 2  # beyond what float64 tells from certain all are alike
    result: Floats = sure - np.log(np.maximum(-np.expm1(sure), least))
    return result


def falls(
    predictor: Predictor, extractor: FeatureExtractor, image: FetchedImage, places: int, seed: int
) -> dict[str, Floats]:
    """Return the fall of the log-odds of each level's best node, ``(L,)``, by choice of places."""
    pixels = square(image, extractor)
    whole = as_picture(pixels)
    vector = extractor.vectors_of_image(whole)
    log_p = predictor.log_probabilities(vector[None])
    nodes = list(path_of(predictor, log_p[0], predictor.told(log_p)[0].path))
    heat = heat_of(predictor, extractor, whole)
    before = log_odds(predictor, np.repeat(vector[None], len(nodes), axis=0), nodes)
    draw = np.random.default_rng(seed)
    found = {}
    for name, (of_heat, by_lot) in CHOICES.items():
        wanted = of_heat * heat + by_lot * draw.random(heat.shape)
        taken = np.argsort(-wanted, axis=1)[:, :places]
        vectors = [extractor.vectors_of_image(as_picture(without(pixels, one))) for one in taken]
        found[name] = before - log_odds(predictor, np.stack(vectors), nodes)
    return found


def without(pixels: NDArray[np.uint8], squares: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Give some squares the image's mean colour."""
    poorer = pixels.copy()
    colour = pixels.mean(axis=(0, 1)).round().astype(np.uint8)
    for row, column in zip(*np.divmod(squares, SIDE), strict=True):
        top, left = row * SQUARE, column * SQUARE
        poorer[top : top + SQUARE, left : left + SQUARE] = colour
    return poorer


def main() -> None:
    """Train, measure and print."""
    parser = arguments(__doc__)
    parser.add_argument("--images", type=int, default=100, help="of the validation split")
    parser.add_argument("--places", type=int, default=10, help="squares taken away, of 49")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    settings = Settings.from_environ(os.environ)
    dataset = load(asked.data)
    extraction = Extraction(settings.networks, settings.cache)
    features = extract(dataset, extraction, tests=(), tell=lambda *_: None)
    targets = torch.from_numpy(features.targets)
    rows = Rows(torch.arange(len(targets)), targets, torch.ones(len(targets)))
    config = TrainingConfig.for_networks(features.networks, seed=asked.seed)
    head = fit_hrn(dataset.tree, torch.from_numpy(features.train), rows, config)
    predictor = predictor_of(head, dataset.tree)
    extractor = FeatureExtractor(lambda ref, _: open_image(ref, Degradation()), extraction.networks)
    files = dataset.val.files
    drawn = np.random.default_rng(asked.seed).permutation(len(files))[: asked.images]
    found = [
        falls(
            predictor,
            extractor,
            open_image(reference_of(files[at]), Degradation()),
            asked.places,
            asked.seed,
        )
        for at in drawn.tolist()
    ]
    told = {}
    for name in CHOICES:
        levels = np.array([one[name] for one in found if len(one[name]) == dataset.tree.depth])
        mean, error = levels.mean(0), levels.std(0, ddof=1) / len(levels) ** 0.5
        told[name] = {"mean": mean.round(3).tolist(), "error": error.round(3).tolist()}
    about = {"images": len(found), "places": asked.places, "of": SIDE * SIDE}
    report({**about, "fall in nats, coarsest level first": told}, asked.json)


if __name__ == "__main__":
    main()
