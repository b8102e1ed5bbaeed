"""Choice of a view for every row by scores of teacher and student.

Source: Shao et al., "Teaching What You Should Teach: A Data-Based Distillation Method" (TST),
IJCAI 2023, and its code: an augmentation is trained to make images that the teacher gets right and
the student wrong. Here the augmentations are views of a cache, of which one is chosen.

Shapes: N rows of the cache, B rows, V views.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Protocol

import numpy as np
import torch
from pydantic import Field
from torch import nn

from logitcache.config import Config, key_of
from logitcache.draws import Purpose, unit_floats, words

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from logitcache.views.spec import View

__all__ = ["SAMPLERS", "SamplerConfig", "ViewSampler", "ViewScores"]

SamplerName = Annotated[str, key_of(lambda: SAMPLERS)]
"""A name of a sampler, checked against :data:`SAMPLERS`."""


class SamplerConfig(Config):
    """Choice of a view for every image, which is shown next to the original one.

    Attributes:
        kind: ``view-scores``: a random view with probability softmax(s / tau), see
            :class:`.ViewScores`.
        tau: Temperature of the choice: 0.1 nearly always takes the best view, 100 any of them.
        refresh: Number of epochs between updates of the student's part of the scores.
        original: Number of the original view among the views of the cache, or among ``use_views``.
    """

    kind: SamplerName = "view-scores"
    tau: float = Field(default=0.5, gt=0)
    refresh: int = Field(default=5, ge=1)
    original: int = Field(default=0, ge=0)


class ViewSampler(Protocol):
    """A choice of one of several views for every row, which may depend on the student.

    A choice is a function of the seed, the epoch, the row and the state of the sampler, and the
    state changes between epochs only: batches are requested ahead, and a run may be resumed at any
    of them.

    Attributes:
        views: The views, V of them.
    """

    views: tuple[View, ...]

    def choose(
        self,
        seed: int,
        epoch: int,
        rows_B: NDArray[np.int64],
        hashes_B: NDArray[np.uint64],
        teacher_BV: NDArray[np.float64],
    ) -> NDArray[np.int64]:
        """Return the number of a view for each row, int64 (B,).

        Args:
            seed: Random seed.
            epoch: Index of the epoch, from 0.
            rows_B: Row numbers of the cache.
            hashes_B: Hashes of the keys of the rows.
            teacher_BV: Log-probabilities of each row's label by the teachers in each view; 0
                without a label.
        """
        ...

    def note(
        self, rows_B: NDArray[np.int64], views_B: NDArray[np.int64], wrong_B: NDArray[np.float32]
    ) -> None:
        """Take what the student knows of some rows, for choices after the next :meth:`end_epoch`.

        Args:
            rows_B: Row numbers of the cache.
            views_B: Number of the view that the student was shown of each.
            wrong_B: Log of one minus the student's probability of the label.
        """
        ...

    def end_epoch(self, epoch: int) -> None:
        """Update the state after an epoch, of which everything is noted."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return the state as tensors."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> Any:
        """Restore a state."""
        ...


class ViewScores(nn.Module):
    """A random view of each row that the teachers get right and the student wrong.

    ::

        P(v | i) = softmax_v(s_iv / tau)
        s_iv = log p_t(y_i | v) + log(1 - p_s(y_i | v))

    with p_t the teachers' probability of the label in view v, and p_s the student's when it was
    last shown row i in this view. Of views that it was not shown, p_s is taken to be 0, so that
    they are tried. Rows without a label get any view.

    The student's part of the scores is in two buffers (N, V): that in use, and the latest one.

    p_s of an epoch is used from the next multiple of ``refresh`` epochs on, so within an epoch all
    scores are constant.

    Args:
        config: Temperature and refresh.
        views: The views.
        rows: Number of rows of the cache, N.
    """

    def __init__(self, config: SamplerConfig, views: tuple[View, ...], rows: int) -> None:
        super().__init__()
        self.config = config
        self.views = views
        self.used = nn.Buffer(torch.zeros(rows, len(views)))
        self.latest = nn.Buffer(torch.zeros(rows, len(views)))

    def choose(
        self,
        seed: int,
        epoch: int,
        rows_B: NDArray[np.int64],
        hashes_B: NDArray[np.uint64],
        teacher_BV: NDArray[np.float64],
    ) -> NDArray[np.int64]:
        """Return the number of a view for each row; see :class:`ViewSampler`."""
        scores_BV = (teacher_BV + self.used.numpy()[rows_B]) / self.config.tau
        weights_BV = np.exp(scores_BV - scores_BV.max(axis=1, keepdims=True))
        drawn = words(seed, hashes_B, draw=epoch, purpose=Purpose.VIEW_CHOICE, count=1)
        floats_B1 = unit_floats(drawn)
        upto_BV = weights_BV.cumsum(axis=1)
        # the first view whose cumulated weight is above the float times the sum
        found_B: NDArray[np.int64] = (upto_BV <= floats_B1 * upto_BV[:, -1:]).sum(axis=1)
        return np.minimum(found_B, len(self.views) - 1)

    def note(
        self, rows_B: NDArray[np.int64], views_B: NDArray[np.int64], wrong_B: NDArray[np.float32]
    ) -> None:
        """Take the log of one minus the student's probabilities; see :class:`ViewSampler`."""
        self.latest.numpy()[rows_B, views_B] = wrong_B

    def end_epoch(self, epoch: int) -> None:
        """Use the student's latest probabilities, every ``refresh`` epochs."""
        if (epoch + 1) % self.config.refresh == 0:
            self.used.copy_(self.latest)


SAMPLERS: dict[str, Callable[[SamplerConfig, tuple[View, ...], int], ViewSampler]] = {
    "view-scores": ViewScores,
}
"""Samplers by name; a new one is one entry here."""
