"""Orders: plain data that outlives releases."""

import json

import pytest

from worker.order import Order


def test_an_order_comes_back_from_the_queue_as_it_was() -> None:
    order = Order("studio-1-1", "asked", force=True, fine_tune=False, attempt=2, crashes=1)
    assert Order.from_json(json.loads(json.dumps(order.to_json()))) == order


def test_an_older_release_reads_what_a_newer_one_wrote() -> None:
    assert Order.from_json({"project": "a", "colour": "red"}) == Order("a")


@pytest.mark.parametrize(
    ("one", "other", "both"),
    [
        (Order("a"), Order("a", "because"), Order("a")),
        (Order("a"), Order("a", force=True), Order("a", force=True)),
        (Order("a", force=True), Order("a"), Order("a", force=True)),
        (Order("a", fine_tune=True), Order("a"), Order("a", fine_tune=True)),
        (Order("a", fine_tune=True), Order("a", fine_tune=False), Order("a", fine_tune=False)),
        (
            Order("a", force=True),
            Order("a", fine_tune=True),
            Order("a", force=True, fine_tune=True),
        ),
    ],
)
def test_a_joined_wish_fulfils_both(one: Order, other: Order, both: Order) -> None:
    assert one.joined(other) == both


def test_a_fast_training_that_fine_tunes_is_refused() -> None:
    with pytest.raises(ValueError, match="not for both"):
        Order("a", fast=True, fine_tune=True)


def test_one_that_an_earlier_release_took_is_trained_fast_as_it_did() -> None:
    waiting = {"project": "a", "fast": True, "fine_tune": True}
    assert Order.from_json(waiting) == Order("a", fast=True)


def test_a_fast_training_leaves_the_next_one_as_the_server_is_set_up() -> None:
    assert Order("a", fast=True).joined(Order("a")) == Order("a")
    assert Order("a", fast=True).joined(Order("a", fine_tune=True)) == Order("a", fine_tune=True)
