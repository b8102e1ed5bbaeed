"""What the fork server imports before it starts children; see :mod:`tests.processes`.

Children inherit the objects of these modules. A garbage collection would write to all of them and
so copy their pages, some hundred megabytes a child: frozen objects are not collected.
"""

from __future__ import annotations

import gc

import tests.hostile.visit  # noqa: F401  # with the modules of the command line

gc.collect()
gc.freeze()
