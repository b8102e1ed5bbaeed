"""Layers whose activations are cached: choice of their encoding, and declaration.

The networks are run on a sample of images before anything is declared: features that do not fit
their encoding are an error at the start of a run, not in the middle of it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from logitcache.cache.format.groups import FeatureGroup, TableGroup
from logitcache.cache.format.names import (
    NO_VIEW,
    canonical_json,
    check_new_name,
    feature_name,
    group_unit_rows,
    sha256,
    tap_of,
    teacher_of,
)
from logitcache.cache.format.table_group import CLASS_EMBEDDINGS
from logitcache.cache.write.unit_commit import Conditions
from logitcache.encoding.feature_choice import feature_encoding
from logitcache.encoding.principal_components import Principal
from logitcache.errors import CacheError, LogitcacheError, UsageError, redacted
from logitcache.precompute.sample.trial import sample_features
from logitcache.teachers.ensemble import Tap
from logitcache.views.tokens import patches_shown

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from logitcache.cache.format.groups import RowGroup
    from logitcache.cache.write.writer import CacheWriter
    from logitcache.data.source import Source
    from logitcache.encoding.feature_choice import FeatureConfig
    from logitcache.encoding.features import FeatureEncoding
    from logitcache.networks.taps import TapShape
    from logitcache.precompute.config import PrecomputeConfig
    from logitcache.teachers.ensemble import Ensemble
    from logitcache.teachers.member import Member
    from logitcache.views.spec import View

__all__ = [
    "choose_taps",
    "declare_taps",
    "smallest_unit",
    "write_class_embeddings",
    "write_tables",
]

_MOSTLY = 0.5  # share of zeros above which compression is worth its time


def choose_taps(
    config: PrecomputeConfig,
    declared: Mapping[str, RowGroup],
    source: Source,
    ensemble: Ensemble,
) -> dict[str, FeatureEncoding]:
    """Return the encoding of the features of every requested layer, by name of its group.

    Args:
        config: Configuration of the run.
        declared: Groups of the cache, by name.
        source: Image set.
        ensemble: The teachers.

    Raises:
        UsageError: There is no such layer, its output does not fit the settings, or the cache
            stores it with other settings.
        FeatureOverflow: The features are too large for the data type of the encoding.
    """
    chosen = {}
    views = _checked_views(config, ensemble)
    for teacher, member in ensemble.members.items():
        wanted = config.teachers[teacher].features
        for tap, shape in member.tap_shapes(wanted).items():
            name = feature_name(teacher, tap)
            if name not in declared:
                taken = [str(tap_of(n)) for n in declared if tap_of(n) and teacher_of(n) == teacher]
                check_new_name(tap, "tap", [*taken, *wanted])
            requested = _encoding(
                wanted[tap], shape, views, where=f"teacher {teacher!r}, tap {tap!r}"
            )
            if name in declared:
                chosen[name] = _as_declared(config.cache, declared[name], requested)
            else:
                chosen[name] = _fitted(config, source, ensemble, teacher, tap, requested)
    return chosen


def smallest_unit(
    writer: CacheWriter, teacher: str, taps: Mapping[str, FeatureEncoding], most: int
) -> int:
    """Return the rows of the smallest unit of a teacher's layers: the largest possible batch.

    Args:
        writer: Writer of the cache.
        teacher: Name of the teacher.
        taps: Encodings of the layers of all teachers, by name of the group.
        most: Upper limit of the result.
    """
    rows = [_unit_rows(writer, tap) for name, tap in taps.items() if teacher_of(name) == teacher]
    return min([most, *rows])


def declare_taps(
    config: PrecomputeConfig,
    writer: CacheWriter,
    taps: Mapping[str, FeatureEncoding],
    view_ids: list[str],
) -> None:
    """Declare layers, or add views to declared ones; their teachers must be declared.

    Raises:
        UsageError: The teacher's batch does not fit into a unit of a layer that is added later.
    """
    declared = writer.row_groups()
    for name, encoding in taps.items():
        teacher, tap = teacher_of(name), tap_of(name)
        assert tap is not None
        views = view_ids[: config.teachers[teacher].features[tap].views]
        if name in declared:
            writer.extend_group(name, views)
            continue
        group = FeatureGroup(
            teacher=teacher,
            tap=tap,
            encoding=encoding,
            unit_rows=_unit_rows(writer, encoding),
            slots=tuple(views),
            lock_sha256=sha256(canonical_json(writer.manifest.teachers[teacher].lock)),
        )
        _check_batch(writer, group)
        writer.add_group(group)


def write_tables(
    config: PrecomputeConfig, writer: CacheWriter, members: Mapping[str, Member]
) -> None:
    """Write the requested tables; the teachers must be declared."""
    for name, member in members.items():
        if config.teachers[name].class_embeddings:
            write_class_embeddings(writer, member)


def write_class_embeddings(writer: CacheWriter, member: Member) -> None:
    """Write the weights of the classifier of a declared teacher, unless the cache has them.

    Raises:
        CacheError: The cache has them with other settings.
        UsageError: The network has no classifier with a single weight matrix.
    """
    values_CE = member.class_embeddings()
    declared = writer.teachers()[member.name]
    group = TableGroup(
        teacher=member.name,
        table=CLASS_EMBEDDINGS,
        width=values_CE.shape[1],
        unit_rows=len(values_CE),
        lock_sha256=declared.lock_sha256,
        class_names_sha256=declared.class_names_sha256,
    )
    name = group.name
    if name not in writer.groups():
        writer.add_group(group)
    elif writer.groups()[name] != group:
        raise CacheError(
            "the table of class embeddings is stored with other settings",
            where=f"{writer.location}/{group.path}",
            expected=str(writer.groups()[name].to_json()),
            got=str(group.to_json()),
            hint="give the teacher a new name",
        )
    writer.write_unit(group, NO_VIEW, 0, group.encode(values_CE), Conditions())


def _check_batch(writer: CacheWriter, group: FeatureGroup) -> None:
    batch = writer.manifest.teachers[group.teacher].canonical_batch
    if batch > group.unit_rows:
        raise UsageError(
            f"features of layer {group.tap!r} are too large for the batch of teacher "
            f"{group.teacher!r}",
            where=writer.location,
            expected=f"a batch of at most {group.unit_rows} images, the rows of a unit",
            got=f"{batch} images, which cannot be changed for this teacher",
            hint="reduce the features (pool, tokens, principal), or give the teacher a new name",
        )


def _unit_rows(writer: CacheWriter, encoding: FeatureEncoding) -> int:
    row_bytes = sum(spec.row_bytes for spec in encoding.specs().values())
    return group_unit_rows(writer.manifest.unit_rows, row_bytes)


def _checked_views(config: PrecomputeConfig, ensemble: Ensemble) -> list[View]:
    """Return the views, after a check that teachers can be run on the patches that they show."""
    views = config.views.views()
    for grid in {view.dropping.grid for view in views if view.dropping is not None}:
        for member in ensemble.members.values():
            member.check_patch_drop(grid)
    return views


def _as_declared(cache: str, group: RowGroup, requested: FeatureEncoding) -> FeatureEncoding:
    """Return the stored encoding of a declared layer, if it fits the requested settings."""
    assert isinstance(group, FeatureGroup)
    known = group.encoding
    if replace(requested, principal=known.principal, sparse=known.sparse) != known:
        differing = {
            key: (value, requested.to_json().get(key))
            for key, value in known.to_json().items()
            if key not in {"principal", "sparse"} and value != requested.to_json().get(key)
        }
        raise UsageError(
            f"layer {group.tap!r} of teacher {group.teacher!r} is stored with other settings",
            where=redacted(cache),
            expected=", ".join(f"{key} {before}" for key, (before, _) in differing.items()),
            got=", ".join(f"{key} {now}" for key, (_, now) in differing.items()),
            hint="use the same settings, or give the teacher a new name",
        )
    return known


def _fitted(
    config: PrecomputeConfig,
    source: Source,
    ensemble: Ensemble,
    teacher: str,
    tap: str,
    requested: FeatureEncoding,
) -> FeatureEncoding:
    """Complete an encoding on a sample: principal directions, and whether to compress."""
    wanted = config.teachers[teacher].features[tap]
    views = config.views.views()
    plain = requested
    if wanted.principal is not None:
        plain = _unprojected(ensemble, teacher, tap, wanted, views)
    sample = sample_features(source, ensemble, Tap(teacher, tap, plain), config.batch)
    if wanted.principal is not None:
        rows_ND = _channel_rows(plain, sample)
        principal = Principal.fit(rows_ND.astype(np.float64), wanted.principal)
        requested = replace(requested, principal=principal)
        sample = sample_features(source, ensemble, Tap(teacher, tap, requested), config.batch)
    zeros = float((sample == 0).mean())
    fitted = replace(requested, sparse=zeros >= _MOSTLY)
    try:
        fitted.encode(sample)
    except LogitcacheError as error:
        error.where = f"teacher {teacher!r}, tap {tap!r}"
        raise
    return fitted


def _unprojected(
    ensemble: Ensemble, teacher: str, tap: str, wanted: FeatureConfig, views: Sequence[View]
) -> FeatureEncoding:
    shape = ensemble.members[teacher].tap_shapes([tap])[tap]
    plain = wanted.model_copy(update={"principal": None})
    return _encoding(plain, shape, views, where=f"teacher {teacher!r}, tap {tap!r}")


def _encoding(
    wanted: FeatureConfig, shape: TapShape, views: Sequence[View], *, where: str
) -> FeatureEncoding:
    """Return the requested encoding of a layer, without what is fitted on a sample."""
    return feature_encoding(
        wanted,
        shape.layout,
        shape.shape,
        grid=shape.grid,
        prefix_tokens=shape.prefix_tokens,
        where=where,
        shown=patches_shown(views[: wanted.views]),
    )


def _channel_rows(encoding: FeatureEncoding, sample: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the channels of every position of every row, (N * positions, D)."""
    last = np.moveaxis(sample, 1, -1) if encoding.layout == "NCHW" else sample
    return last.reshape(-1, last.shape[-1])
