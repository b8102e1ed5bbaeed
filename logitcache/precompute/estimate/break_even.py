"""Break-even of a cache: the student epochs after which it costs less than live teachers.

Per image, in seconds: ``teach`` of all teachers' forwards, ``precompute`` of all views (decoding
once, rendering, forwards, encoding and writing, as they overlap), ``fetch`` of one row's targets
out of the cache. A student renders its own views and does its own step either way, so those
cancel::

    live    E N teach
    cached  N precompute + E N fetch
    E  >=   precompute / (teach - fetch)

E counts the epochs of all students that learn from the cache together. With a view for every epoch
of one student E is above the number of views: one such student costs less with live teachers, a
second one with the cache. Where fetching a target takes as long as the forwards, nothing is gained.
"""

from __future__ import annotations

import math

__all__ = ["break_even_epochs"]


def break_even_epochs(precompute: float, teach: float, fetch: float) -> int | None:
    """Return after how many student epochs a cache costs no more than live teachers.

    Args:
        precompute: Seconds of all views of one image in precompute.
        teach: Seconds of all teachers' forwards of one image.
        fetch: Seconds of reading one row's targets.

    Returns:
        Whole epochs of all students together; None where it never does.
    """
    gained = teach - fetch
    return math.ceil(precompute / gained) if gained > 0 else None
