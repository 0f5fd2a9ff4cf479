"""What to ask next: each rule against its definition read slowly, and what the mix keeps to."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from hierarchy import LabelTree
from hierarchy.acquisition import (
    Asked,
    Space,
    ask,
    cluster,
    entropy,
    k_center,
    leaf_probabilities,
    margin,
    twin_ranks,
    typical,
    varied_share,
)
from hierarchy.acquisition.diversity import NEIGHBOURS, REFERENCES, mean_distance
from hierarchy.errors import ShapeError
from tests.strategies import trees

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

TREE = LabelTree.from_paths([("Fruit", "Apple"), ("Fruit", "Pear"), ("Milk",)])


def unit(count: int, channels: int, seed: int) -> Floats:
    drawn = np.random.default_rng(seed).normal(size=(count, channels)).astype(np.float32)
    return np.asarray(drawn / np.linalg.norm(drawn, axis=1, keepdims=True), dtype=np.float32)


def said(tree: LabelTree, count: int, seed: int) -> NDArray[np.float64]:
    """Log-probabilities of a legal answer each: stop at a node drawn by weight."""
    ends = np.random.default_rng(seed).dirichlet(np.ones(len(tree) + 1), size=count)
    below = np.array([[tree.covers(a, b) for b in range(len(tree))] for a in range(len(tree))])
    return np.asarray(np.log(np.minimum(ends[:, :-1] @ below.T, 1.0) + 1e-12))


def blobs(groups: int, each: int, *, spread: float = 0.05, seed: int = 0) -> tuple[Floats, Ints]:
    """Features in tight groups, and the group of each."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(groups, 24))
    belongs = np.repeat(np.arange(groups), each)
    features = centres[belongs] + spread * rng.normal(size=(len(belongs), 24))
    return features.astype(np.float32), belongs


def nothing(channels: int) -> Floats:
    return np.zeros((0, channels), dtype=np.float32)


# Space and clusters


def test_a_space_standardises_each_channel_and_gives_unit_vectors() -> None:
    features = (np.random.default_rng(0).normal(size=(50, 4)) * [1, 10, 100, 1000] + 7).astype(
        np.float32
    )
    vectors = Space.of(features).vectors(features)
    deviation = features.std(axis=0)
    # A thousandth of the mean deviation goes on top, for channels that never move.
    scaled = (features - features.mean(axis=0)) / (deviation + 1e-3 * deviation.mean())
    exact = scaled / np.linalg.norm(scaled, axis=1, keepdims=True)
    np.testing.assert_allclose(vectors, exact, atol=1e-4)
    big = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    np.testing.assert_allclose(
        Space.of(big).vectors(big), Space.of(big * 1000).vectors(big * 1000), atol=1e-4
    )


def test_a_projection_keeps_cosines_of_vectors_that_lie_in_few_directions() -> None:
    rng = np.random.default_rng(0)
    features = (rng.normal(size=(300, 5)) @ rng.normal(size=(5, 40))).astype(np.float32)
    whole = Space.of(features, kept=40).vectors(features)
    few = Space.of(features, kept=8).vectors(features)
    np.testing.assert_allclose(few @ few.T, whole @ whole.T, atol=1e-3)


def test_a_channel_that_never_moves_and_equal_pictures_are_no_trouble() -> None:
    features = np.ones((6, 3), dtype=np.float32)
    assert Space.of(features).vectors(features).tolist() == np.zeros((6, 3)).tolist()


def test_tight_groups_become_the_clusters() -> None:
    features, belongs = blobs(6, 10, spread=0.01)
    found, centres = cluster(features, 6, seed=3)
    for group in range(6):
        assert len(set(found[belongs == group].tolist())) == 1
    assert len(set(found.tolist())) == 6
    np.testing.assert_allclose(centres[found[0]], features[:10].mean(axis=0), atol=1e-5)


def test_no_more_clusters_than_pictures() -> None:
    found, centres = cluster(unit(3, 4, 0), 10)
    assert len(centres) == 3
    assert sorted(found.tolist()) == [0, 1, 2]
    assert len(cluster(nothing(4), 10)[0]) == 0


# Rules on features


@given(st.integers(1, 30), st.integers(0, 10), st.integers(0, 35), st.integers(0, 99))
def test_typical_takes_each_picture_once_and_empty_clusters_first(
    pool: int, taken: int, count: int, seed: int
) -> None:
    both = unit(pool + taken, 6, seed)
    belongs, _ = cluster(both, min(taken + count, 500) or 1, seed=seed)
    chosen = typical(both[:pool], count, taken=both[pool:], belongs=belongs, seed=seed)
    assert len(chosen) == min(count, pool)
    assert len(set(chosen.tolist())) == len(chosen)
    answers = Counter(belongs[pool:].tolist())
    open_ = Counter(belongs[:pool].tolist())
    for position in chosen.tolist():  # by definition: no open cluster has fewer answers
        own = int(belongs[position])
        rivals = [(answers[c], -np.sum(belongs == c)) for c in open_ if open_[c]]
        assert (answers[own], -np.sum(belongs == own)) == min(rivals)
        answers[own] += 1
        open_[own] -= 1


def test_typical_takes_the_densest_of_a_cluster_first() -> None:
    vectors = unit(12, 5, 1)
    belongs = np.zeros(12, dtype=np.int64)
    away = [
        np.mean(sorted(math.dist(vectors[i], vectors[j]) for j in range(12) if j != i))
        for i in range(12)
    ]
    assert typical(vectors, 12, belongs=belongs).tolist() == np.argsort(away).tolist()


def test_density_is_the_mean_distance_to_the_nearest_neighbours() -> None:
    vectors = unit(40, 3, 2)
    rng = np.random.default_rng(0)
    slow = [
        np.mean(sorted(math.dist(a, b) for j, b in enumerate(vectors) if j != i)[:NEIGHBOURS])
        for i, a in enumerate(vectors)
    ]
    np.testing.assert_allclose(mean_distance(vectors, rng), slow, atol=1e-3)
    many = unit(REFERENCES + 100, 3, 2)
    assert np.all(mean_distance(many, rng) > 0)
    assert mean_distance(vectors[:1], rng).tolist() == [0.0]


def test_typical_goes_where_no_answer_is() -> None:
    features, belongs = blobs(8, 10)
    known = belongs < 5
    chosen = typical(features[~known], 3, taken=features[known][::10], seed=0)
    assert sorted(belongs[~known][chosen].tolist()) == [5, 6, 7]


@given(st.integers(1, 20), st.integers(0, 6), st.integers(0, 25), st.integers(0, 99))
def test_k_center_agrees_with_its_definition(pool: int, taken: int, count: int, seed: int) -> None:
    both = unit(pool + taken, 4, seed)
    found = k_center(both[:pool], count, taken=both[pool:]).tolist()
    covered = both[pool:].tolist()
    for position in found:
        if covered:
            nearest = [min(math.dist(v, c) for c in covered) for v in both[:pool].tolist()]
            assert nearest[position] >= max(nearest) - 1e-3
        covered.append(both[position].tolist())
    assert len(set(found)) == len(found) == min(count, pool)


# Rules on the model


@given(trees(), st.integers(0, 99))
def test_margin_and_entropy_agree_with_their_definitions(tree: LabelTree, seed: int) -> None:
    log_p = said(tree, 3, seed)
    for row, lead, bits in zip(log_p, margin(log_p, tree), entropy(log_p, tree), strict=True):
        chance = [math.exp(row[leaf]) for leaf in tree.leaves]
        share = sorted((one / sum(chance) for one in chance), reverse=True)
        slow = share[0] - share[1] if len(share) > 1 else 1.0
        assert lead == pytest.approx(slow, abs=1e-9)
        assert bits == pytest.approx(-sum(p * math.log(p) for p in share if p), abs=1e-9)


def test_leaves_without_any_chance_are_equally_likely() -> None:
    log_p = np.full((1, len(TREE)), -np.inf)
    assert leaf_probabilities(log_p, TREE).tolist() == [[1 / 3] * 3]
    assert margin(log_p, TREE).tolist() == [0.0]


# Near-duplicates


def test_a_near_duplicate_ranks_behind_what_it_is_like() -> None:
    base = unit(4, 8, 0)
    vectors = np.concatenate([base, base[:2], base[3:]])  # 4 and 5 as 0 and 1; answered as 3
    together = np.zeros(len(vectors), dtype=np.int64)
    order = np.array([5, 0, 1, 2, 3, 4])
    assert twin_ranks(vectors, together, order, 1, alike=0.95).tolist() == [0, 1, 0, 1, 1, 0]
    nowhere = twin_ranks(vectors, np.arange(len(vectors)), order, 1, alike=0.95)
    assert nowhere.tolist() == [0] * 6


# The whole


@given(
    trees(),
    st.integers(0, 25),
    st.integers(0, 6),
    st.integers(0, 30),
    st.integers(0, 99),
    st.floats(0, 1),
    st.sampled_from(["model", "no model"]),
)
def test_the_order_holds_every_picture_once(
    tree: LabelTree, pool: int, taken: int, count: int, seed: int, chance: float, what: str
) -> None:
    features = unit(pool + taken, 5, seed)
    log_p = said(tree, pool, seed) if what == "model" else None
    found = ask(
        features[:pool],
        log_p,
        tree,
        taken=features[pool:],
        count=count,
        labels=taken,
        seed=seed,
        random_share=chance,
    )
    assert sorted(found.order.tolist()) == list(range(pool))
    assert found.order.dtype == np.int64
    assert len(found.reasons) == min(count, pool)
    if log_p is None:
        assert found.margin is None
        assert set(found.reasons) <= {"varied"}
        return
    assert found.margin is not None
    np.testing.assert_array_equal(found.margin, margin(log_p, tree))


def mixed(
    *, labels: int, seed: int = 0, chance: float = 0.1, count: int = 40, taken: int = 20
) -> Asked:
    features = unit(300 + taken, 30, 0)
    return ask(
        features[:300],
        said(TREE, 300, 1),
        TREE,
        taken=features[300:],
        count=count,
        labels=labels,
        seed=seed,
        random_share=chance,
    )


def test_equal_seeds_give_equal_orders_and_others_do_not() -> None:
    first, again, other = mixed(labels=9), mixed(labels=9), mixed(labels=9, seed=1)
    assert first.order.tolist() == again.order.tolist()
    assert first.reasons == again.reasons
    assert first.order.tolist() != other.order.tolist()


@pytest.mark.parametrize(
    ("labels", "varied"), [(3, 36), (12, 18), (21, 0), (1000, 0)], ids=["1", "4", "7", "many"]
)
def test_variety_gives_way_to_doubt_as_answers_come(labels: int, varied: int) -> None:
    counts = Counter(mixed(labels=labels).reasons)
    assert (counts["random"], counts["varied"]) == (4, varied)
    assert counts["uncertain"] == 36 - varied


def test_the_share_of_variety_falls_and_fits_any_tree() -> None:
    shares = [varied_share(labels, 10) for labels in range(0, 100, 5)]
    assert shares == sorted(shares, reverse=True)
    assert (shares[0], varied_share(40, 10), shares[-1]) == (1.0, 0.5, 0.0)
    assert varied_share(0, 1) == varied_share(1, 1) == 1.0


def test_kinds_are_spread_over_the_batch() -> None:
    reasons = mixed(labels=12).reasons
    for start in range(0, 40, 10):
        counts = Counter(reasons[start : start + 10])
        assert counts["varied"] >= 4
        assert counts["uncertain"] >= 4
        assert counts["random"] == 1


def test_a_small_random_share_holds_over_many_batches() -> None:
    counts = [Counter(mixed(labels=99, seed=s, chance=0.05, count=10).reasons) for s in range(40)]
    drawn = [one["random"] for one in counts]
    assert set(drawn) == {0, 1}
    assert 8 <= sum(drawn) <= 32  # 20 expected


def test_doubtful_pictures_are_in_doubt() -> None:
    found = mixed(labels=1000, chance=0)
    assert found.margin is not None
    asked = found.margin[found.order[:40]]
    assert asked.max() <= np.sort(found.margin)[4 * 40]


def test_behind_the_batch_the_others_follow_by_margin() -> None:
    found = mixed(labels=12)
    assert found.margin is not None
    rest = found.margin[found.order[40:]]
    assert rest.tolist() == sorted(rest.tolist())


def test_the_first_pictures_show_every_group_once() -> None:
    features, belongs = blobs(9, 12)
    found = ask(features, None, TREE, taken=nothing(24), count=9, labels=0, seed=2)
    assert sorted(belongs[found.order[:9]].tolist()) == list(range(9))


def test_near_duplicates_come_after_all_that_is_new() -> None:
    base = unit(30, 40, 5)
    features = np.concatenate([base, base[:10], base[:10]])
    for log_p in (None, said(TREE, 50, 3)):
        found = ask(features, log_p, TREE, taken=base[20:22], count=12, labels=2, seed=0)
        shown = [int(at) % 30 if at < 30 else int(at - 30) % 10 for at in found.order]
        assert len(set(shown[:28])) == 28  # two of the thirty have an answer already
        assert not set(shown[:28]) & {20, 21}
        ranks = [shown[:at].count(one) for at, one in enumerate(shown) if one < 10]
        assert ranks == sorted(ranks)  # no third copy before every second one


def test_a_pool_of_one_picture_many_times_is_still_asked() -> None:
    same = np.ones((7, 4), dtype=np.float32)
    for log_p in (None, said(TREE, 7, 0)):
        found = ask(same, log_p, TREE, taken=same[:2], count=3, labels=2, seed=0)
        assert sorted(found.order.tolist()) == list(range(7))
        assert len(found.reasons) == 3


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"features": np.zeros(3, dtype=np.float32)}, r"features must be \(B, C\)"),
        ({"features": np.full((3, 4), np.nan, dtype=np.float32)}, "image 0 are not finite"),
        ({"taken": np.zeros((1, 5), dtype=np.float32)}, "taken must have 4 channels"),
        ({"log_p": np.zeros((3, 2))}, r"log_p must be \(3, 4\), got \(3, 2\)"),
        ({"log_p": np.full((3, 4), np.nan)}, "numbers of 0 or less, and no NaN"),
        ({"log_p": np.ones((3, 4))}, "numbers of 0 or less, and no NaN"),
        ({"count": -1}, "count and labels must be 0 or more"),
        ({"random_share": 1.5}, r"random_share in \[0, 1\]"),
    ],
)
def test_what_cannot_be_is_refused(wrong: dict[str, object], message: str) -> None:
    given = {
        "features": np.zeros((3, 4), dtype=np.float32),
        "log_p": None,
        "tree": TREE,
        "taken": np.zeros((1, 4), dtype=np.float32),
        "count": 1,
        "labels": 1,
        "seed": 0,
        **wrong,
    }
    with pytest.raises(ShapeError, match=message):
        ask(**given)  # type: ignore[arg-type]


def test_a_space_of_nothing_is_refused() -> None:
    with pytest.raises(ShapeError, match="at least one image"):
        Space.of(nothing(3))
