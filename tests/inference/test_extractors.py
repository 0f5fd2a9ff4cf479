"""Every version gets features of the networks that it was trained on, or a clear refusal."""

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from hierarchy import LabelTree
from inference.backbone import Backbone, RandomWeights, load_backbone
from inference.errors import BackboneError
from inference.extractors import FeatureExtractors, tuned_backbone, tuned_fingerprint
from inference.feature_cache import FeatureCache
from inference.feature_extractor import FeatureExtractor
from inference.predictor import Predictor, load_predictor
from inference.store import ModelStore
from tests.inference.small import (
    HEAD,
    NAME,
    VIT,
    extractors,
    fetch,
    head_of,
    project,
    publish,
    weights_file,
)

TREE = LabelTree.from_paths([("Milk",), ("Fruit", "Apple")])


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return weights_file(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory, file: Path) -> FeatureExtractors:
    return extractors(tmp_path_factory.mktemp("cache"), file)


@pytest.fixture(scope="module")
def other() -> Backbone:
    """The same network with other weights, as fine-tuning leaves it."""
    return load_backbone(NAME, weights=RandomWeights(7))


def version(
    store: ModelStore, name: str, fingerprint: str, weights: dict[str, Tensor] | None = None
) -> Predictor:
    made = publish(
        store,
        project(),
        TREE,
        head_of(TREE, HEAD),
        backbone=(name, fingerprint),
        backbone_weights=weights,
    )
    return load_predictor(store, project(), made)


def vector(extractor: FeatureExtractor) -> np.ndarray:
    [found] = extractor.vectors([("1.png", None)])
    assert isinstance(found, np.ndarray)
    return found


def test_a_version_on_our_network_shares_its_extractor(
    ours: FeatureExtractors, tmp_path: Path
) -> None:
    found = version(ModelStore(tmp_path), NAME, ours.backbone().fingerprint)
    assert ours.of(found) is ours.base() is ours.base()


def test_a_version_of_another_backbone_is_refused_with_the_remedy(
    ours: FeatureExtractors, tmp_path: Path
) -> None:
    found = version(ModelStore(tmp_path), "resnet50", "resnet50-123456789abc")
    with pytest.raises(BackboneError, match=r"v1 was trained on resnet50-.*HRN_BACKBONE=resnet50"):
        ours.of(found)


def test_a_fine_tuned_version_brings_its_own_backbone(
    ours: FeatureExtractors, other: Backbone, tmp_path: Path
) -> None:
    mark = tuned_fingerprint(ours.backbone(), other.module)
    found = version(ModelStore(tmp_path), NAME, mark, dict(other.module.state_dict()))
    tuned = ours.of(found)
    assert ours.of(found) is tuned
    assert tuned is not ours.base()
    own, base = vector(tuned), vector(ours.base())
    assert np.abs(own - base).max() > 0.5 * np.abs(own).max()


def test_weights_that_are_not_those_trained_with_are_refused(
    ours: FeatureExtractors, other: Backbone, tmp_path: Path
) -> None:
    weights = dict(other.module.state_dict())
    found = version(ModelStore(tmp_path), NAME, f"{NAME}-tuned-000000000000", weights)
    with pytest.raises(BackboneError, match="was trained on test_efficientnet-tuned-0000"):
        ours.of(found)


def test_weights_of_another_network_are_refused() -> None:
    with pytest.raises(BackboneError, match=f"the version's backbone is not a {NAME}"):
        tuned_backbone(NAME, {"conv.weight": torch.zeros(1)})


def test_equal_weights_have_equal_names_and_others_have_not(
    ours: FeatureExtractors, other: Backbone
) -> None:
    base = ours.backbone()
    state = other.module.state_dict()
    one, two = tuned_backbone(NAME, state), tuned_backbone(NAME, state)
    assert one.fingerprint == two.fingerprint == tuned_fingerprint(base, other.module)
    state["network.conv_stem.weight"] = state["network.conv_stem.weight"] + 1e-3
    marks = {base.fingerprint, one.fingerprint, tuned_backbone(NAME, state).fingerprint}
    assert len(marks) == 3
    assert not one.module.training


def test_several_networks_stand_side_by_side(tmp_path: Path, file: Path) -> None:
    vit = weights_file(tmp_path, network=VIT)
    both = FeatureExtractors(tmp_path, fetch, networks=[(NAME, file), (VIT, vit)], device="cpu")
    assert both.base().name == f"{NAME}+{VIT}"
    assert both.base().channels == 256 + 128
    assert both.backbone() is both.backbones()[1]  # the last one is fine-tuned
    alone = extractors(tmp_path / "alone", file).base()
    np.testing.assert_array_equal(vector(both.base())[:256], vector(alone))


def test_a_version_on_some_of_our_networks_is_served(tmp_path: Path, file: Path) -> None:
    """Another HRN_BACKBONE than when it was trained; the networks' engines are shared."""
    vit = weights_file(tmp_path, network=VIT)
    both = FeatureExtractors(tmp_path, fetch, networks=[(NAME, file), (VIT, vit)], device="cpu")
    base = both.base()
    mark = both.backbones()[0].fingerprint
    found = both.of(version(ModelStore(tmp_path / "models"), NAME, mark))
    assert found.fingerprint == mark
    assert found.networks[0] is base.networks[0]
    assert both.base() is base


def test_a_version_on_networks_from_packages_is_served_by_any_server(
    ours: FeatureExtractors, tmp_path: Path
) -> None:
    lite = "tf_efficientnet_lite0"
    found = version(ModelStore(tmp_path), lite, load_backbone(lite).fingerprint)
    assert ours.of(found).channels == 1280


def test_threads_share_one_backbone(tmp_path: Path, file: Path) -> None:
    fresh = extractors(tmp_path, file)
    found: list[FeatureExtractor] = []
    threads = [threading.Thread(target=lambda: found.append(fresh.base())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == 4
    assert len({id(one) for one in found}) == 1


def test_a_backbone_that_cannot_be_built_says_what_to_give(tmp_path: Path) -> None:
    broken = FeatureExtractors(tmp_path, lambda *_: pytest.fail("fetched"), networks=[(NAME, None)])
    with pytest.raises(BackboneError, match="weights=FILE"):
        broken.base()


def test_pruning_brings_all_features_under_a_size(tmp_path: Path, file: Path) -> None:
    fresh = extractors(tmp_path, file)
    fresh.base().vectors([(f"{seed}.png", None) for seed in range(4)])
    cache = FeatureCache(tmp_path)
    assert cache.size().vectors == 4
    assert fresh.prune(10**9) == 0
    assert cache.size().vectors == 4
    fresh.prune(0)
    assert cache.size().vectors == 0


def test_pruning_an_empty_cache_is_fine(tmp_path: Path, file: Path) -> None:
    assert extractors(tmp_path / "nowhere", file).prune(0) == 0
