"""Break-even of a cache: the student epochs after which it costs less than live teachers.

Per image, in seconds: ``teach`` of all teachers' forwards, ``store`` of one view in precompute
(rendering, forwards, encoding and writing, as they overlap), ``fetch`` of one row's targets out of
the cache. A student renders its own views and does its own step either way, so those cancel::

    live    E N teach
    cached  V N store + E N fetch
    E  >=   V store / (teach - fetch)

E counts the epochs of all students that learn from the cache together. With a view for every epoch
of one student E is above V: one such student costs less with live teachers, a second one with the
cache. Where fetching a target takes as long as asking the teachers, nothing is ever gained.
"""

from __future__ import annotations

import math

__all__ = ["break_even_epochs"]


def break_even_epochs(views: int, teach: float, store: float, fetch: float) -> int | None:
    """Return after how many student epochs a cache costs no more than live teachers.

    Args:
        views: V, views of the cache.
        teach: Seconds of all teachers' forwards of one image.
        store: Seconds of one image and view in precompute.
        fetch: Seconds of reading one row's targets.

    Returns:
        Whole epochs of all students together; None where it never does.
    """
    gained = teach - fetch
    return math.ceil(views * store / gained) if gained > 0 else None
