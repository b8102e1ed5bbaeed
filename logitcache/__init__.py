"""Run each teacher once. Train any number of students from its cached outputs.

``build_cache`` runs teachers, ``train_student`` trains from their cached outputs, and a training
script of your own needs four lines::

    import logitcache

    cache = logitcache.open_cache("cache")
    for images, targets in logitcache.loader(cache, "photos", batch_size=256, size=224):
        loss = objective(student(images), targets)

Public are the names of this module, and the namespaces ``configs``, ``errors``, ``objectives``,
``testing`` and ``views``; everything else may change between releases. Names are imported when they
are first used, so importing this package costs nothing. Its networks are models of timm:
``timm.create_model("rednet50")`` works once both packages are imported.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from logitcache.moved import install as install_moved_paths
from logitcache.networks.register import register_with_timm

if TYPE_CHECKING:
    from logitcache import configs as configs
    from logitcache import errors as errors
    from logitcache import objectives as objectives
    from logitcache import testing as testing
    from logitcache import views as views
    from logitcache.batch import (
        DenseLogits,
        EncodedLogits,
        Features,
        Outputs,
        SigmoidLogits,
        SparseLogits,
        TargetBatch,
    )
    from logitcache.check.repair import repair_cache as repair
    from logitcache.check.verify import verify
    from logitcache.data.readers import DataConfig, open_source
    from logitcache.data.readers.torch_dataset import DatasetSource
    from logitcache.encoding.choice import EncodingConfig
    from logitcache.errors import LogitcacheError
    from logitcache.exchange.exporting import export_outputs
    from logitcache.exchange.importing import import_outputs
    from logitcache.label_sets import LabelSets
    from logitcache.networks.build import NetworkConfig, build_network
    from logitcache.objectives.combine import ObjectiveConfig, build_objective
    from logitcache.objectives.label import Label, LabelConfig
    from logitcache.objectives.soft import Soft, SoftConfig
    from logitcache.precompute.build import build_cache
    from logitcache.precompute.config import PrecomputeConfig
    from logitcache.precompute.estimate.estimate import estimate_cache as estimate
    from logitcache.report.describe import describe
    from logitcache.share.comparing import compare_caches
    from logitcache.share.garbage import collect_garbage
    from logitcache.share.merging import merge_caches
    from logitcache.share.row_selection import RowSelection
    from logitcache.share.slicing import slice_cache
    from logitcache.share.transfer import pull, push
    from logitcache.targets.cache_targets import Cache, open_cache
    from logitcache.targets.cached_dataset import CachedDataset
    from logitcache.targets.cached_teacher import CachedTeacher
    from logitcache.targets.loader import Loader, loader
    from logitcache.teachers.member import TeacherConfig
    from logitcache.training.config import TrainConfig
    from logitcache.training.evaluation.evaluate import EvaluateConfig, evaluate_network
    from logitcache.training.loop import train_student
    from logitcache.views.spec import ViewsConfig

__all__ = [
    "Cache",
    "CachedDataset",
    "CachedTeacher",
    "DataConfig",
    "DatasetSource",
    "DenseLogits",
    "EncodedLogits",
    "EncodingConfig",
    "EvaluateConfig",
    "Features",
    "Label",
    "LabelConfig",
    "LabelSets",
    "Loader",
    "LogitcacheError",
    "NetworkConfig",
    "ObjectiveConfig",
    "Outputs",
    "PrecomputeConfig",
    "RowSelection",
    "SigmoidLogits",
    "Soft",
    "SoftConfig",
    "SparseLogits",
    "TargetBatch",
    "TeacherConfig",
    "TrainConfig",
    "ViewsConfig",
    "build_cache",
    "build_network",
    "build_objective",
    "collect_garbage",
    "compare_caches",
    "describe",
    "estimate",
    "evaluate_network",
    "export_outputs",
    "import_outputs",
    "loader",
    "merge_caches",
    "open_cache",
    "open_source",
    "pull",
    "push",
    "repair",
    "slice_cache",
    "train_student",
    "verify",
]

_HOMES = {
    "Cache": "targets.cache_targets",
    "CachedDataset": "targets.cached_dataset",
    "CachedTeacher": "targets.cached_teacher",
    "DataConfig": "data.readers",
    "DatasetSource": "data.readers.torch_dataset",
    "DenseLogits": "batch",
    "EncodedLogits": "batch",
    "EncodingConfig": "encoding.choice",
    "EvaluateConfig": "training.evaluation.evaluate",
    "Features": "batch",
    "Label": "objectives.label",
    "LabelConfig": "objectives.label",
    "LabelSets": "label_sets",
    "Loader": "targets.loader",
    "LogitcacheError": "errors",
    "NetworkConfig": "networks.build",
    "ObjectiveConfig": "objectives.combine",
    "Outputs": "batch",
    "PrecomputeConfig": "precompute.config",
    "RowSelection": "share.row_selection",
    "SigmoidLogits": "batch",
    "Soft": "objectives.soft",
    "SoftConfig": "objectives.soft",
    "SparseLogits": "batch",
    "TargetBatch": "batch",
    "TeacherConfig": "teachers.member",
    "TrainConfig": "training.config",
    "ViewsConfig": "views.spec",
    "build_cache": "precompute.build",
    "build_network": "networks.build",
    "build_objective": "objectives.combine",
    "collect_garbage": "share.garbage",
    "compare_caches": "share.comparing",
    "describe": "report.describe",
    "estimate": "precompute.estimate.estimate:estimate_cache",
    "evaluate_network": "training.evaluation.evaluate",
    "export_outputs": "exchange.exporting",
    "import_outputs": "exchange.importing",
    "loader": "targets.loader",
    "merge_caches": "share.merging",
    "open_cache": "targets.cache_targets",
    "open_source": "data.readers",
    "pull": "share.transfer",
    "push": "share.transfer",
    "repair": "check.repair:repair_cache",
    "slice_cache": "share.slicing",
    "train_student": "training.loop",
    "verify": "check.verify",
}
_NAMESPACES = {"configs", "errors", "objectives", "testing", "views"}

register_with_timm()
install_moved_paths()


def __getattr__(name: str) -> Any:
    if name in _NAMESPACES:
        return importlib.import_module(f"logitcache.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'logitcache' has no attribute {name!r}")
    home, _, attribute = _HOMES[name].partition(":")
    return getattr(importlib.import_module(f"logitcache.{home}"), attribute or name)


def __dir__() -> list[str]:
    return __all__
