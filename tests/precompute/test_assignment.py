"""Who works on what, without dask and without waiting."""

from __future__ import annotations

import pytest

from logitcache.errors import ClusterError
from logitcache.precompute.cluster.assignment import Assignment
from logitcache.precompute.plan.worklist import WorkItem

A, B = "tcp://a", "tcp://b"


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def assignment(count: int, clock: Clock | None = None) -> Assignment:
    items = [WorkItem("v", number, units={"t": (number,)}) for number in range(count)]
    made = Assignment(items, lambda _: 10, clock or Clock(), most_losses=3)
    for address in (A, B):
        made.ready(address, address[-1])
    return made


def test_each_worker_has_one_item_at_a_time_in_order() -> None:
    found = assignment(3)
    assert list(found.take()) == [(A, 0), (B, 1)]
    assert list(found.take()) == []
    found.progressed(B, 10)
    found.returned(B, 1, committed=True)
    assert list(found.take()) == [(B, 2)]
    assert found.shown == 10


def test_only_workers_that_are_ready_take_items() -> None:
    found = assignment(2)
    found.refused(A, "a", "other\n  weights")
    found.joined("tcp://c", "c")
    assert list(found.take()) == [(B, 0)]
    assert found.notices == ["worker a was refused: other; weights"]
    assert found.can_continue
    found.gone(["tcp://c"])
    found.gone([B])
    assert not found.can_continue
    assert found.refusals == {"a": "other\n  weights"}


def test_a_worker_keeps_the_block_whose_images_it_has_decoded() -> None:
    items = [WorkItem(view, block, units={"t": (block,)}) for block in (0, 1) for view in "vwx"]
    found = Assignment(items, lambda _: 10, Clock(), most_losses=3)
    for address in (A, B):
        found.ready(address, address[-1])
    assert list(found.take()) == [(A, 0), (B, 3)]
    found.returned(B, 3, committed=True)
    assert list(found.take()) == [(B, 4)]
    found.returned(B, 4, committed=True)
    found.returned(A, 0, committed=True)
    assert list(found.take()) == [(A, 1), (B, 5)]
    found.returned(B, 5, committed=True)
    assert list(found.take()) == [(B, 2)], "a block is shared where no other is left"


def test_an_item_goes_to_the_end_of_the_line_when_its_worker_dies() -> None:
    found = assignment(4)
    assert list(found.take()) == [(A, 0), (B, 1)]
    found.gone([A])
    found.returned(B, 1, committed=True)
    order = []
    while taken := list(found.take()):
        ((_, number),) = taken
        order.append(number)
        found.returned(B, number, committed=True)
    assert order == [2, 3, 0]
    assert found.finished


def test_an_item_that_loses_too_many_workers_is_named() -> None:
    found = assignment(1)
    found.gone([B])
    for number in range(3):
        (address,) = found.addresses()
        assert list(found.take()) == [(address, 0)]
        found.gone([address])
        found.ready(f"tcp://{number}", str(number))
    (address,) = found.addresses()
    list(found.take())
    with pytest.raises(ClusterError, match=r"block 0 of view v \(t unit 0\)[\s\S]*4 workers lost"):
        found.gone([address])


def test_what_was_put_off_waits_a_moment() -> None:
    clock = Clock()
    found = assignment(1, clock)
    ((address, number),) = found.take()
    found.returned(address, number, committed=False)
    assert list(found.take()) == []
    clock.now = 1.0
    assert [n for _, n in found.take()] == [0]


def test_a_silent_worker_loses_its_item_and_takes_none_until_it_sends_heartbeats() -> None:
    found = assignment(3)
    list(found.take())
    assert found.silent(A, 121.0) is found.items[0]
    assert found.silent(A, 122.0) is None
    assert found.notices == [
        "worker a has sent no heartbeat for 121 s; block 0 of view v (t unit 0) is reassigned"
    ]
    assert found.can_continue
    found.returned(B, 1, committed=True)
    assert list(found.take()) == [(B, 2)]
    assert found.silent(B, 121.0) is found.items[2]
    assert not found.can_continue
    assert {worker.state for worker in found.progress().workers} == {"silent"}
    found.alive(A)
    found.alive(A)
    assert found.notices[-1] == "worker a sends heartbeats again"
    assert list(found.take()) == [(A, 0)]
    found.returned(A, 0, committed=True)
    assert list(found.take()) == [(A, 2)]
    found.returned(A, 2, committed=True)
    assert found.finished


def test_waiting_is_reported_once_nothing_else_is_left() -> None:
    found = assignment(2)
    list(found.take())
    found.waits(A, "for another run")
    found.returned(A, 0, committed=False)
    assert found.progress().waiting == ""
    found.returned(B, 1, committed=True)
    assert found.progress().waiting == "for another run"
    found.waits("tcp://gone", "nothing")
    assert found.progress().waiting == "for another run"


def test_stragglers_are_visible() -> None:
    clock = Clock()
    found = assignment(3, clock)
    list(found.take())
    clock.now = 2.0
    found.progressed(A, 10)
    found.returned(A, 0, committed=True)
    list(found.take())
    clock.now = 3.9
    assert not any(worker.slow for worker in found.progress().workers)
    clock.now = 4.1
    found.progressed(B, 4)
    progress = found.progress()
    assert {worker.name: worker.slow for worker in progress.workers} == {"a": False, "b": True}
    assert (progress.images, progress.total) == (14, 30)
    assert progress.workers[1].item == "block 1 of view v (t unit 1)"
