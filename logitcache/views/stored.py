"""Views whose squares are stored: which part of a recipe is stored, and what is applied afterwards.

The square of an image before a mix is stored; the mix and the operations of derived views are
applied to stored squares. So views that are derived from one another share their squares.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from logitcache.views.operations import Mixing
from logitcache.views.recipe import DERIVED, root_id

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from logitcache.views.render import BatchRequest
    from logitcache.views.spec import View

__all__ = ["SquareNumbers", "finishing", "stored_part", "stored_under"]


def stored_under(view: View) -> str:
    """Return the id under which the squares of a view are stored: of what it is derived from."""
    return root_id(view.to_json())


def stored_part(view: View) -> View:
    """Return the view that is rendered to be stored: without its mix and derived operations."""
    kept = tuple(operation for operation in view.operations if operation.name not in DERIVED)
    return replace(view, operations=kept, base=None).unmixed


def finishing(view: View) -> View:
    """Return the operations that are applied to stored squares, as a view of these."""
    left = tuple(
        operation
        for operation in view.operations
        if isinstance(operation, Mixing) or operation.name in DERIVED
    )
    return replace(view, operations=left, base=None)


@dataclass(frozen=True)
class SquareNumbers:
    """Numbers of all squares, so that a renderer reads them as if each were an image of its own.

    Attributes:
        views: Ids of the views under which they are stored.
        images: Number of images.
    """

    views: tuple[str, ...]
    images: int

    def request(self, request: BatchRequest) -> BatchRequest:
        """Return a request to finish stored squares, for one to render a view of images."""
        first = self.views.index(stored_under(request.view)) * self.images
        partners = request.partners
        return replace(
            request,
            view=finishing(request.view),
            indices=_numbered(request.indices, first),
            partners=None if partners is None else _numbered(partners, first),
        )

    def split(self, number: int) -> tuple[str, int]:
        """Return the view and the index of the image of a square."""
        view, index = divmod(number, self.images)
        return self.views[view], index


def _numbered(indices_B: NDArray[np.int64], first: int) -> NDArray[np.int64]:
    """Return numbers of squares; the -1 of positions that stay empty are kept."""
    return np.where(indices_B < 0, indices_B, indices_B + first)
