"""Every rival can be built by name for any tree, and asked the same three things."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hierarchy import LabelTree
from hierarchy.rivals.registry import RIVALS
from tests.hierarchy.rivals.small import pool
from tests.strategies import trees


def test_the_rivals_are_these() -> None:
    assert set(RIVALS) == {"lmlp", "hmcn", "chmcnn", "chang", "marginal", "flat"}


@pytest.mark.parametrize("name", RIVALS)
def test_a_rival_takes_any_tree_from_maps_to_a_loss_and_an_answer(name: str) -> None:
    @settings(max_examples=15)
    @given(trees(), st.data())
    def check(tree: LabelTree, data: st.DataObject) -> None:
        rival = RIVALS[name](tree, pool(), 4)
        target = st.integers(0, len(tree) - 1)
        targets = torch.tensor(data.draw(st.lists(target, min_size=2, max_size=3)))
        outputs = rival(torch.randn(len(targets), 4, 3, 3))
        loss = rival.loss(outputs, targets)
        loss.backward()
        assert loss.shape == ()
        assert loss.isfinite()
        log_p = rival.log_probability(outputs)
        assert log_p.shape == (len(targets), len(tree))
        assert log_p.isfinite().all()
        assert (log_p <= 1e-5).all()

    check()


@pytest.mark.parametrize("name", RIVALS)
def test_permuting_the_pictures_permutes_the_answers(name: str) -> None:
    tree = LabelTree.from_paths([("a", "x", "1"), ("a", "y"), ("b",)])
    torch.manual_seed(0)
    rival = RIVALS[name](tree, pool(), 4).eval()
    maps = torch.randn(5, 4, 3, 3)
    order = torch.tensor([3, 0, 4, 1, 2])
    with torch.inference_mode():
        straight, turned = (rival.log_probability(rival(m)) for m in (maps, maps[order]))
    torch.testing.assert_close(straight[order], turned)
