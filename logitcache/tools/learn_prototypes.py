"""Prototypes of the local features of a teacher: soft clustering of its cached tokens.

After Li et al., "Prototype-guided Cross-task Knowledge Distillation for Large-scale Models"
(ProC-KD), 2022, of which only the abstract was available; see
:mod:`logitcache.tools.soft_clustering`.

Shapes: N rows, M tokens, K prototypes, E channels.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import Field
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from logitcache.cache.read.reader import open_cache
from logitcache.config import Config
from logitcache.errors import Interrupted, UsageError
from logitcache.files import warn_damaged, write_file
from logitcache.tools.cached_rows import (
    feature_teacher,
    sampled_rows,
    shared_view,
    stored_rows,
)
from logitcache.tools.soft_clustering import State, improved, spread_centers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from logitcache.cache.format.groups import FeatureGroup
    from logitcache.cache.read.reader import Cache
    from logitcache.encoding.features import FeatureEncoding
    from logitcache.tools.soft_clustering import Tokens

__all__ = ["LearnPrototypesConfig", "Prototypes", "check_positions", "learn_prototypes"]

_SEEDING_TOKENS = 16384
_UNFINISHED = ".unfinished"


class LearnPrototypesConfig(Config):
    """Settings of prototypes: cache, layer and their number.

    Attributes:
        cache: Folder or URL of a cache with whole maps or tokens of the layer.
        out: File to write the prototypes to, ``.safetensors``.
        teacher: Name of the teacher; that of the cache if it has features of one only.
        tap: The layer; that of the teacher if only one was cached.
        count: Number of prototypes.
        passes: Number of passes over the tokens. The state after each pass is written next to
            ``out``, and a run with the same settings continues from there.
        sharpness: Sharpness of the assignment, in units of one over the mean squared distance of a
            token from its nearest prototype at the start.
        rows: Maximum number of images; more are sampled at random.
        seed: Random seed of that sample and of the start.
    """

    cache: str
    out: str
    teacher: str | None = None
    tap: str | None = None
    count: Annotated[int, Field(ge=2)] = 64
    passes: Annotated[int, Field(ge=1)] = 10
    sharpness: float = Field(default=5.0, gt=0)
    rows: Annotated[int, Field(ge=1)] = 10000
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0


@dataclass(frozen=True)
class Prototypes:
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

    def to_json(self) -> dict[str, Any]:
        """Return the description as JSON values."""
        return asdict(self)


class _Layer:
    """Tokens of a sample of images at one layer of a cache, read one unit at a time.

    Attributes:
        group: The layer.
        rows: Rows of the images, ascending.
        count: Number of tokens.
    """

    def __init__(self, cache: Cache, group: FeatureGroup, config: LearnPrototypesConfig) -> None:
        self._cache, self.group = cache, group
        self._view = shared_view(cache, [], [f"{group.teacher}/{group.tap}"])
        self.rows = sampled_rows(cache, config.rows, config.seed)
        self.count = len(self.rows) * self.tokens_per_row

    @property
    def tokens_per_row(self) -> int:
        """Number of tokens of an image, without prefix tokens."""
        encoding = self.group.encoding
        if encoding.layout == "NCHW":
            return encoding.shape[1] * encoding.shape[2]
        return encoding.shape[0] - encoding.prefix_tokens

    def tokens(self, rows: NDArray[np.int64]) -> Tokens:
        """Return the tokens of some rows, (M, E)."""
        encoding = self.group.encoding
        stored = stored_rows(self._cache, self.group, self._view, rows)
        values: Tokens = encoding.decode(stored)
        if encoding.layout == "NCHW":
            values = np.moveaxis(values, 1, 3)
        else:
            values = values[:, encoding.prefix_tokens :]
        return values.reshape(-1, values.shape[-1])

    def batches(
        self,
        done: int,
        passes: int,
        on_progress: Callable[[int, int], None] | None,
        should_stop: Callable[[], bool] | None,
    ) -> Iterator[Tokens]:
        """Return all tokens, one unit at a time.

        Args:
            done: Number of passes that are done.
            passes: Number of all passes.
            on_progress: Called after every unit, see :func:`learn_prototypes`.
            should_stop: Called before every unit.

        Raises:
            Interrupted: The run was stopped.
        """
        unit_N = self.rows // self.group.unit_rows
        seen = done * len(self.rows)
        for rows in np.split(self.rows, np.flatnonzero(np.diff(unit_N)) + 1):
            if should_stop is not None and should_stop():
                raise Interrupted(
                    f"stopped in pass {done + 1} of {passes}; those before it are kept",
                    kept=done > 0,
                    hint="run the same command again",
                )
            yield self.tokens(rows)
            seen += len(rows)
            if on_progress is not None:
                on_progress(seen, passes * len(self.rows))


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
        should_stop: Called after every unit; whether to stop. All passes that ended are kept.

    Raises:
        UsageError: A teacher or layer is unknown, it has no positions, or there are fewer tokens
            than prototypes.
        Interrupted: The run was stopped.
    """
    cache = open_cache(config.cache)
    teacher = feature_teacher(cache, config.teacher, "learn_prototypes.teacher")
    layer = _Layer(cache, _group(config, cache, teacher), config)
    saved = Path(f"{config.out}{_UNFINISHED}")
    settings = _settings(config, cache.revision_sha256)
    state = _read(saved, settings, config.passes) or _start(config, layer)
    while state.passes < config.passes:
        batches = layer.batches(state.passes, config.passes, on_progress, should_stop)
        state = improved(batches, state)
        write_file(saved, _as_bytes(state, settings))
    _write_result(Path(config.out), state, f"{teacher}/{layer.group.tap}")
    saved.unlink(missing_ok=True)
    return Prototypes(
        teacher=teacher,
        tap=layer.group.tap,
        count=config.count,
        channels=state.centers.shape[1],
        passes=state.passes,
        explained=round(state.explained, 6),
        images=len(layer.rows),
        tokens=layer.count,
        file=config.out,
        cache=config.cache,
    )


def _group(config: LearnPrototypesConfig, cache: Cache, teacher: str) -> FeatureGroup:
    """Return the group of the layer."""
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


def check_positions(encoding: FeatureEncoding, where: str) -> None:
    """Check that a layer is cached with its channels at several positions.

    Raises:
        UsageError: It is cached as a vector, or as its energy.
    """
    is_vector = encoding.layout == "vector"
    if is_vector or encoding.reduction == "energy":
        raise UsageError(
            "prototypes are learned of the channels at every position",
            where=where,
            expected="maps or tokens",
            got="a vector" if is_vector else "the energy of the channels",
            hint="precompute this layer without reduce, or choose another one",
        )


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
    return State(centers_KE, config.sharpness / distance if distance > 0 else config.sharpness)


def _settings(config: LearnPrototypesConfig, revision: str) -> str:
    """Return all that the state after a pass depends on."""
    values = config.model_dump(mode="json", exclude={"out", "passes"})
    return json.dumps({**values, "revision": revision}, sort_keys=True)


def _as_bytes(state: State, settings: str) -> bytes:
    """Return a state as the content of a file."""
    numbers = {"scale": state.scale, "passes": state.passes, "explained": state.explained}
    notes = {"settings": settings, "state": json.dumps(numbers)}
    return save({"centers": state.centers}, metadata=notes)


def _read(path: Path, settings: str, passes: int) -> State | None:
    """Return the state of an interrupted run with the same settings, None without one.

    A damaged file counts as missing: its passes are done again.
    """
    if not path.exists():
        return None
    try:
        with safe_open(path, "numpy") as file:
            notes, centers_KE = file.metadata() or {}, file.get_tensor("centers")
    except SafetensorError as error:
        warn_damaged(path, str(error))
        return None
    if notes.get("settings") != settings:
        return None
    state = State(centers_KE, **json.loads(notes["state"]))
    return state if state.passes <= passes else None


def _write_result(path: Path, state: State, feature: str) -> None:
    """Write the prototypes and the linear layer of the assignment."""
    tensors = {
        "centers": state.centers,
        "weight": 2 * state.scale * state.centers,
        "bias": -state.scale * np.square(state.centers).sum(1),
    }
    content = {name: np.ascontiguousarray(t, dtype=np.float32) for name, t in tensors.items()}
    # a single entry: safetensors writes several in an order of chance
    write_file(path, save(content, metadata={"features": feature}))
