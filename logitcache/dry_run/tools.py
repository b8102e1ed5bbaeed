"""Outlines of the stages that compute small files, with the checks of their tools."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from logitcache.dry_run.networks import network_shape, shown
from logitcache.dry_run.outline import Earlier, StageOutline
from logitcache.errors import UsageError, first_of, nearest
from logitcache.networks.weight_layers import MOST_BITS, weight_layers
from logitcache.tools.class_means import check_vectors
from logitcache.tools.learn_prototypes import check_positions
from logitcache.tools.pick_bits import check_trained
from logitcache.tools.pick_hints import check_candidate, check_count

if TYPE_CHECKING:
    from collections.abc import Iterable

    from logitcache.pipeline.run import Stage
    from logitcache.tools.class_means import ClassMeansConfig
    from logitcache.tools.fit_weights import FitWeightsConfig
    from logitcache.tools.learn_prototypes import LearnPrototypesConfig
    from logitcache.tools.pick_bits import PickBitsConfig
    from logitcache.tools.pick_hints import PickHintsConfig
    from logitcache.tools.synthesize import SynthesizeConfig

__all__ = [
    "outline_bits",
    "outline_hints",
    "outline_means",
    "outline_prototypes",
    "outline_synthesis",
    "outline_weights",
]


def outline_means(
    config: ClassMeansConfig, stage: Stage, output: str, earlier: Earlier
) -> StageOutline:
    """Return the outline of a stage ``class_means``; see :class:`.Outline`."""
    where = f"stages.{stage.name}.feature"
    known = earlier.cache(config.cache, f"stages.{stage.name}").features
    _check_cached([config.feature], known, where)
    check_vectors(known[config.feature], where)
    earlier.files.add(output)
    return StageOutline(stage.name, stage.kind)


def outline_synthesis(
    config: SynthesizeConfig, stage: Stage, output: str, earlier: Earlier
) -> StageOutline:
    """Return the outline of a stage ``synthesize``; see :class:`.Outline`."""
    made = earlier.count(config.data)
    earlier.images[output] = replace(made, images=config.count or made.images)
    note = f"{stage.name}: bytes of the images are not counted"
    return StageOutline(stage.name, stage.kind, images=earlier.images[output].images, notes=(note,))


def outline_weights(
    config: FitWeightsConfig, stage: Stage, output: str, earlier: Earlier
) -> StageOutline:
    """Return the outline of a stage ``fit_weights``; see :class:`.Outline`."""
    known = earlier.cache(config.cache, f"stages.{stage.name}").logits
    teachers = config.teachers or list(known)
    _check_cached(teachers, known, f"stages.{stage.name}.teachers")
    earlier.results[stage.name] = {"teachers": dict.fromkeys(teachers, 1 / max(1, len(teachers)))}
    return StageOutline(stage.name, stage.kind, notes=("the weights are known after the run",))


def outline_hints(
    config: PickHintsConfig, stage: Stage, output: str, earlier: Earlier
) -> StageOutline:
    """Return the outline of a stage ``pick_hints``; see :class:`.Outline`."""
    where = f"stages.{stage.name}.taps"
    known = earlier.cache(config.cache, f"stages.{stage.name}").features
    teacher = config.teacher or next((name.partition("/")[0] for name in known), "")
    own = [name for name in known if name.partition("/")[0] == teacher]
    names = [f"{teacher}/{tap}" for tap in config.taps] if config.taps else own
    _check_cached(names, known, where)
    for name in names:
        check_candidate(known[name], where)
    check_count(config.count, len(names))
    step = (len(names) - 1) / max(1, config.count - 1)
    chosen = [names[round(i * step)].partition("/")[2] for i in range(config.count)]
    earlier.results[stage.name] = {"taps": chosen}
    note = f"the layers are known after the run; assumed here: {', '.join(chosen)}"
    return StageOutline(stage.name, stage.kind, notes=(note,))


def outline_bits(
    config: PickBitsConfig, stage: Stage, output: str, earlier: Earlier
) -> StageOutline:
    """Return the outline of a stage ``pick_bits``; see :class:`.Outline`."""
    if config.network.model not in earlier.networks:
        check_trained(config.network)
    network = network_shape(config.network, earlier.networks)
    layers = weight_layers(network, f"stages.{stage.name}.network")
    earlier.results[stage.name] = {"bits": dict.fromkeys(layers, MOST_BITS)}
    note = f"the bits are known after the run; assumed here: {MOST_BITS} for every layer"
    return StageOutline(stage.name, stage.kind, what=shown(network), notes=(note,))


def outline_prototypes(
    config: LearnPrototypesConfig, stage: Stage, output: str, earlier: Earlier
) -> StageOutline:
    """Return the outline of a stage ``learn_prototypes``; see :class:`.Outline`."""
    where = f"stages.{stage.name}.tap"
    known = earlier.cache(config.cache, f"stages.{stage.name}").features
    taps = [name for name in known if config.teacher in {None, name.partition("/")[0]}]
    wanted = [name for name in taps if config.tap in {None, name.partition("/")[2]}]
    if len(wanted) != 1:
        raise UsageError(
            "the prototypes of one layer are learned",
            where=where,
            expected="one of " + ", ".join(known) if known else "a cache with features",
            got=", ".join(wanted) or f"{config.teacher or ''}/{config.tap or ''}",
        )
    check_positions(known[wanted[0]], where)
    earlier.files.add(output)
    return StageOutline(stage.name, stage.kind, what=wanted[0])


def _check_cached(names: Iterable[str], known: Iterable[str], where: str) -> None:
    """Refuse teachers or layers that a cache would lack, and a cache that has none.

    Raises:
        UsageError: One of them is missing.
    """
    has = list(known)
    missing = next((name for name in names if name not in has), None)
    if missing is not None or not has:
        raise UsageError(
            "the cache would lack what this stage reads",
            where=where,
            expected=first_of(has) if has else "a cache that has it",
            got=missing,
            hint=nearest(missing, has) if missing is not None and has else "precompute it",
        )
