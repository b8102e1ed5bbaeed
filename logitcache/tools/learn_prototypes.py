"""Prototypes of the local features of a teacher: soft clustering of its cached tokens.

After Li et al., "Prototype-guided Cross-task Knowledge Distillation for Large-scale Models"
(ProC-KD), 2022, of which only the abstract was available; see
:mod:`logitcache.tools.soft_clustering`.

Shapes: N rows, P positions, M tokens, K prototypes, E channels.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import torch
from pydantic import Field
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from logitcache.cache.read.reader import open_cache
from logitcache.errors import Interrupted, UsageError
from logitcache.files import warn_damaged, write_file
from logitcache.objectives.prototypes.table import PrototypeTable
from logitcache.tools.cached_rows import (
    SampleConfig,
    cached_positions,
    check_layer,
    feature_teacher,
    sampled_rows,
    shared_view,
)
from logitcache.tools.result import ToolResult
from logitcache.tools.soft_clustering import State, improved, spread_centers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from logitcache.cache.format.groups import FeatureGroup
    from logitcache.cache.read.reader import Cache
    from logitcache.encoding.features import FeatureEncoding

__all__ = ["LearnPrototypesConfig", "Prototypes", "check_positions", "learn_prototypes"]

_SEEDING_TOKENS = 16384
_UNFINISHED = ".unfinished"


class LearnPrototypesConfig(SampleConfig):
    """Settings of prototypes: cache, layer and their number.

    Attributes:
        cache: Folder or URL of a cache with whole maps or tokens of the layer.
        out: File to write the prototypes to, ``.safetensors``.
        seed: Random seed of the sample and of the start.
        teacher: Name of the teacher; that of the cache if it has features of one only.
        tap: The layer; that of the teacher if only one was cached.
        count: Number of prototypes.
        passes: Number of passes over the tokens. The state after each pass is written next to
            ``out``, and a run with the same settings continues from there.
        sharpness: Sharpness of the assignment, in units of one over the mean squared distance of a
            token from its nearest prototype at the start.
    """

    teacher: str | None = None
    tap: str | None = None
    count: Annotated[int, Field(ge=2)] = 64
    passes: Annotated[int, Field(ge=1)] = 10
    sharpness: float = Field(default=5.0, gt=0)


@dataclass(frozen=True)
class Prototypes(ToolResult):
    """What was learned, without the prototypes themselves.

    Attributes:
        teacher: Name of the teacher.
        tap: The layer.
        count: Number of prototypes.
        channels: Number of channels, E.
        passes: Number of passes.
        explained: Share of the variance of the tokens that their assigned prototypes explain,
            ``1 - mean sum_k a_jk |p_j - c_k|^2 / mean |p_j - mean|^2``, before the last pass.
        images: Number of images.
        tokens: Number of tokens.
        file: The file with the prototypes.
        cache: Folder or URL of the cache.
    """

    teacher: str
    tap: str
    count: int
    channels: int
    passes: int
    explained: float
    images: int
    tokens: int
    file: str
    cache: str


def learn_prototypes(
    config: LearnPrototypesConfig,
    *,
    on_progress: Callable[[int, int], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Prototypes:
    """Learn prototypes of a cached layer and write them to a file.

    The file has the tensors ``centers`` (K, E), ``weight`` (K, E) and ``bias`` (K,), float32: the
    logits of the assignment of a token p are ``weight @ p + bias``.

    Args:
        config: Settings.
        on_progress: Called after every unit with the number of images so far, and that of all
            passes together.
        should_stop: Called before every unit; whether to stop. All passes that ended are kept.

    Raises:
        UsageError: A teacher or layer is unknown, it has no positions, or there are fewer tokens
            than prototypes.
        Interrupted: The run was stopped.
    """
    layer = _Layer(open_cache(config.cache), config)
    saved = Path(f"{config.out}{_UNFINISHED}")
    # all that the state after a pass depends on
    settings = config.model_dump(mode="json", exclude={"out", "passes"})
    settings["revision"] = layer.cache.revision_sha256
    state = _saved_state(saved, settings, config.passes) or _start(config, layer)
    while state.passes < config.passes:
        state = improved(
            layer.batches(state.passes, config.passes, on_progress, should_stop), state
        )
        numbers = {**asdict(state), "centers": None}
        notes = {"unfinished": json.dumps({"settings": settings, "state": numbers})}
        write_file(saved, save({"centers": state.centers}, metadata=notes))
    table = PrototypeTable.of(state.centers, state.scale).float()
    # a single entry: safetensors writes several in an order of chance
    notes = {"features": f"{layer.group.teacher}/{layer.group.tap}"}
    write_file(Path(config.out), save(table.state_dict(), metadata=notes))
    saved.unlink(missing_ok=True)
    return Prototypes(
        teacher=layer.group.teacher,
        tap=layer.group.tap,
        count=config.count,
        channels=table.channels,
        passes=state.passes,
        explained=round(state.explained, 6),
        images=len(layer.rows),
        tokens=layer.tokens_per_row * len(layer.rows),
        file=config.out,
        cache=config.cache,
    )


def check_positions(encoding: FeatureEncoding, where: str) -> None:
    """Check that a layer is cached with its channels at several positions.

    Raises:
        UsageError: It is cached as a vector, or as its energy.
    """
    need = "prototypes are learned of the channels at every position"
    check_layer(encoding, {"positions"}, need, where)


class _Layer:
    """Tokens of a sample of images at one layer of a cache, read one unit at a time.

    Attributes:
        cache: The cache.
        group: The layer.
        rows: Rows of the images, ascending.
    """

    def __init__(self, cache: Cache, config: LearnPrototypesConfig) -> None:
        self.cache, self.group = cache, _group(config, cache)
        self._view = shared_view(cache, [], [f"{self.group.teacher}/{self.group.tap}"])
        self.rows = sampled_rows(cache, config.rows, config.seed)

    @property
    def tokens_per_row(self) -> int:
        """Number of tokens of an image, without prefix tokens."""
        encoding = self.group.encoding
        return encoding.patches if encoding.kept is None else encoding.kept

    def tokens(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the tokens of some rows, (M, E)."""
        values_NPE = cached_positions(self.cache, self.group, self._view, rows)
        return values_NPE.reshape(-1, values_NPE.shape[2])

    def batches(
        self,
        done: int,
        passes: int,
        on_progress: Callable[[int, int], None] | None,
        should_stop: Callable[[], bool] | None,
    ) -> Iterator[NDArray[np.float32]]:
        """Return all tokens, one unit at a time; see :func:`learn_prototypes`.

        Args:
            done: Number of passes that are done.
            passes: Number of all passes.
            on_progress: Called after every unit.
            should_stop: Called before every unit.

        Raises:
            Interrupted: The run was stopped.
        """
        ends = np.flatnonzero(np.diff(self.rows // self.group.unit_rows)) + 1
        for end, rows in zip([*ends, len(self.rows)], np.split(self.rows, ends), strict=True):
            if should_stop is not None and should_stop():
                raise Interrupted(
                    f"stopped in pass {done + 1} of {passes}; those before it are kept",
                    kept=done > 0,
                    hint="run the same command again",
                )
            yield self.tokens(rows)
            if on_progress is not None:
                on_progress(done * len(self.rows) + int(end), passes * len(self.rows))


def _group(config: LearnPrototypesConfig, cache: Cache) -> FeatureGroup:
    """Return the group of the layer."""
    teacher = feature_teacher(cache, config.teacher, "learn_prototypes.teacher")
    taps = [group.tap for group in cache.features.values() if group.teacher == teacher]
    if config.tap is None and len(taps) > 1:
        raise UsageError(
            "the cache has several layers of this teacher",
            where="learn_prototypes.tap",
            expected="the name of one",
            got=", ".join(taps),
        )
    group = cache.tap(f"{teacher}/{config.tap or taps[0]}")
    check_positions(group.encoding, f"{cache.url}, features {teacher}/{group.tap}")
    return group


def _start(config: LearnPrototypesConfig, layer: _Layer) -> State:
    """Return the prototypes before the first pass, chosen among the tokens of some rows."""
    some = -(-_SEEDING_TOKENS // layer.tokens_per_row)
    tokens_ME = layer.tokens(layer.rows[:: max(1, len(layer.rows) // some)][:some])
    if len(tokens_ME) < config.count:
        raise UsageError(
            "there are fewer tokens than prototypes",
            where="learn_prototypes.count",
            expected=f"at most {len(tokens_ME)}",
            got=config.count,
        )
    centers_KE, distance = spread_centers(tokens_ME, config.count, config.seed)
    scale = config.sharpness / distance if distance > 0 else config.sharpness
    return State(torch.from_numpy(centers_KE), scale)


def _saved_state(path: Path, settings: dict[str, object], passes: int) -> State | None:
    """Return the state of an interrupted run with the same settings, None without one.

    Nothing of a damaged file is used: its passes are done again.
    """
    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as file:
            found = json.loads((file.metadata() or {})["unfinished"])
            centers_KE = file.get_tensor("centers")
    except (SafetensorError, KeyError, ValueError) as error:
        warn_damaged(path, str(error))
        return None
    values = found["state"]
    if found["settings"] != settings or values["passes"] > passes:
        return None
    return State(**{**values, "centers": centers_KE})
