"""The images of a run, and which of their labels it may see."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from logitcache.draws import Purpose, words
from logitcache.errors import UsageError
from logitcache.targets.match import ImageRows, number_rows
from logitcache.targets.opening import cached_targets

if TYPE_CHECKING:
    from logitcache.data.source import Source
    from logitcache.objectives.term import Needs
    from logitcache.targets.loader import Targets
    from logitcache.training.config import TrainConfig

__all__ = ["training_images"]


def training_images(
    config: TrainConfig, source: Source, needs: Needs
) -> tuple[ImageRows, Targets | None]:
    """Choose the images of a run and the labels it may see, and open its targets.

    Args:
        config: The run.
        source: Its images.
        needs: What the objective asks for.
    """
    if config.cache is None:
        return _with_labels(number_rows(source), config, source), None
    rows, targets = cached_targets(
        config.cache,
        source,
        needs.teachers,
        needs.features,
        target_memory=config.target_memory,
        shuffled=config.shuffle_targets,
        subset=config.subset,
        tolerate_pixel_drift=config.tolerate_pixel_drift,
        local_copy=config.local_copy,
        local_copy_bytes=config.local_copy_bytes,
    )
    return _with_labels(rows, config, source), targets


def _with_labels(rows: ImageRows, config: TrainConfig, source: Source) -> ImageRows:
    """Hide all labels but the ones the student may see.

    Which images keep theirs depends on their keys and the seed alone, so every run over a set,
    cached or not, hides the same ones.
    """
    wanted = config.labels
    labelled = np.flatnonzero(rows.labels >= 0)
    if wanted.count is not None:
        if wanted.count > len(labelled):
            raise UsageError(
                "there are not so many labels",
                where=source.description,
                expected=f"at most {len(labelled)}",
                got=wanted.count,
                hint="set labels.count lower",
            )
        seed = config.seed if wanted.seed is None else wanted.seed
        hashes = rows.hashes[labelled]
        drawn = words(seed, hashes, draw=0, purpose=Purpose.LABELLED_ROWS, count=1)
        labelled = labelled[np.argsort(drawn[:, 0], kind="stable")[: wanted.count]]
    visible = np.zeros(len(rows), dtype=np.bool_)
    visible[labelled] = True
    rows.labels = np.where(visible, rows.labels, -1)
    return rows.keep(visible) if wanted.images == "labelled" else rows
