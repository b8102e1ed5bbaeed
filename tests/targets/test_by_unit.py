from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from logitcache.targets.unit_cache import UnitCache

ASKED: list[int] = []


def squares(unit: int) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
    ASKED.append(unit)
    rows = np.arange(unit * 8, unit * 8 + 8)
    return np.stack([rows, rows**2], axis=1)


def test_rows_come_from_their_units_and_few_stay() -> None:
    ASKED.clear()
    values = UnitCache(squares, 8)
    values.keep = 2
    rows = np.array([17, 3, 9, 16, 3])
    assert values.take(rows).tolist() == [[row, row**2] for row in rows.tolist()]
    assert values.at(18).tolist() == [18, 324]
    assert ASKED == [0, 1, 2], "each once"
    assert values.take(rows[:1]).tolist() == [[17, 289]]
    values.at(0)
    assert ASKED == [0, 1, 2, 0], "the first had to go"
    assert values.take(rows[:0]).shape == (0, 2)


def test_a_copy_begins_anew_and_threads_may_ask() -> None:
    values = UnitCache(squares, 8)
    values.keep = 3
    values.at(0)
    copy: UnitCache = pickle.loads(pickle.dumps(values))
    assert copy.keep == 3
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda row: copy.at(row)[1], range(200)))
    assert found == [row**2 for row in range(200)]
