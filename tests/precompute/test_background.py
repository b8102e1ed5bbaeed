from __future__ import annotations

import threading
import time

import pytest

from logitcache.errors import Interrupted
from logitcache.precompute.run.background import Background


def test_things_are_done_in_order_by_another_thread() -> None:
    done: list[tuple[int, bool]] = []
    here = threading.get_ident()

    def task(number: int) -> None:
        done.append((number, threading.get_ident() != here))

    with Background() as background:
        for number in range(20):
            background.do(lambda number=number: task(number))  # type: ignore[misc]  # a default
    assert done == [(number, True) for number in range(20)]


def test_who_gives_waits_while_too_much_is_waiting() -> None:
    gate = threading.Event()
    given = 0

    def give(background: Background) -> None:
        nonlocal given
        for _ in range(10):
            background.do(gate.wait)
            given += 1

    with Background() as background:
        giving = threading.Thread(target=give, args=[background])
        giving.start()
        time.sleep(0.1)
        assert given < 5
        gate.set()
        giving.join()
    assert given == 10


def test_after_a_failure_nothing_is_done_and_it_is_raised_where_things_were_given() -> None:
    done: list[int] = []

    def fail() -> None:
        raise OSError("no space left")

    def give() -> None:
        with Background() as background:
            background.do(lambda: done.append(1))
            background.do(fail)
            for number in range(2, 9):
                background.do(lambda number=number: done.append(number))  # type: ignore[misc]  # a default

    with pytest.raises(OSError, match="no space left"):
        give()
    assert done == [1]


def test_the_last_failure_is_raised_on_leaving() -> None:
    with pytest.raises(ZeroDivisionError), Background() as background:
        background.do(lambda: 1 / 0)


@pytest.mark.parametrize("error", [Interrupted("stopped", kept=True), KeyboardInterrupt()])
def test_a_wish_to_stop_is_not_lost(error: BaseException) -> None:
    """What was given is done before a wish to stop ends the run; a second one drops it."""
    gate = threading.Event()
    done: list[int] = []

    def give() -> None:
        with Background() as background:
            background.do(gate.wait)
            background.do(lambda: done.append(1))
            threading.Timer(0.1, gate.set).start()
            raise error

    with pytest.raises(type(error)):
        give()
    assert done == ([1] if isinstance(error, Exception) else [])
