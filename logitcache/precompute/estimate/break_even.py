"""Break-even of a cache: the student epochs after which it costs less than live teachers.

In seconds per image: ``teach`` is the time of the forward passes of all teachers, ``precompute``
the time to compute and store all views (decoding once, rendering, forward passes, encoding and
writing, as they overlap), ``fetch`` the time to read the targets of one row from the cache. A
student renders its views and takes its training step in both cases, so those times cancel. For N
images::

    live    E N teach
    cached  N precompute + E N fetch
    E  >=   precompute / (teach - fetch)

E is the sum of the epochs of all students that are trained from the cache. With one view for every
epoch of one student, E is larger than the number of views: live teachers cost less for one such
student, and usually the cache for two. If reading a target takes as long as the forward passes, the
cache never breaks even.
"""

from __future__ import annotations

import math

__all__ = ["break_even_epochs"]


def break_even_epochs(precompute: float, teach: float, fetch: float) -> int | None:
    """Return the student epochs after which a cache takes no more time than live teachers.

    Args:
        precompute: Seconds per image to compute and store all views.
        teach: Seconds per image of the forward passes of all teachers.
        fetch: Seconds per image to read the targets.

    Returns:
        Whole epochs, summed over all students; None if the cache never breaks even.
    """
    gained = teach - fetch
    return math.ceil(precompute / gained) if gained > 0 else None
