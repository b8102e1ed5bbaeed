"""Time of forward passes: those of each teacher alone, summed, on a processor and in a queue."""

from __future__ import annotations

import time

import pytest
import torch

from logitcache.teachers.forward_clock import ForwardClock, ForwardTime


def test_forward_passes_are_summed_by_teacher() -> None:
    clock = ForwardClock(torch.device("cpu"))
    for teacher, seconds in (("a", 0.02), ("b", 0.0), ("a", 0.03)):
        with clock.measure(teacher, 8):
            time.sleep(seconds)
        time.sleep(0.01)  # what is outside of the block is not counted
    assert {name: found.images for name, found in clock.times.items()} == {"a": 16, "b": 8}
    assert clock.times["a"].seconds == pytest.approx(0.05, abs=0.04)
    assert clock.times["a"].seconds >= 0.05
    assert clock.times["b"].seconds < 0.02


class Event:
    """An event of a device that is behind: it has reached only what was waited for."""

    clock = 0.0
    reached = 0.0

    def __init__(self, *, enable_timing: bool) -> None:
        assert enable_timing
        self.moment = 0.0

    def record(self, stream: str) -> None:
        assert stream == "stream"
        Event.clock += 5.0
        self.moment = Event.clock

    def query(self) -> bool:
        return self.moment <= Event.reached

    def synchronize(self) -> None:
        Event.reached = max(Event.reached, self.moment)

    def elapsed_time(self, other: Event) -> float:
        assert self.query()
        assert other.query()
        return other.moment - self.moment


def test_a_queue_is_timed_by_its_events_without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: "stream")
    clock = ForwardClock(torch.device("cuda"))
    for teacher in ("a", "b", "a"):
        with clock.measure(teacher, 8):
            pass
    assert Event.reached == 0.0, "no forward pass was waited for"
    assert clock.times == {"a": ForwardTime(0.01, 16), "b": ForwardTime(0.005, 8)}
    Event.reached = Event.clock + 1e9
    with clock.measure("b", 8):
        pass
    assert len(clock._queued) == 0, "what has ended is collected on the way"
