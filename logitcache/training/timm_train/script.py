"""timm's own train.py, unpatched, with images and a teacher from a cache.

The script runs in this process, as ``python train.py`` would run it. While it runs,
``timm.data.create_loader`` returns the training loader of the cache, and the model
``logitcache_teacher`` is the cached teacher. Everything else is timm's: student, optimizer,
schedule, losses, validation, checkpoints.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import runpy
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import timm.data
import timm.data.loader
from timm.models import register_model

from logitcache.errors import UsageError
from logitcache.targets.cache_targets import open_cache
from logitcache.targets.cached_teacher import CachedTeacher
from logitcache.training.timm_train.loader import CacheForTimm, not_in_views
from logitcache.training.timm_train.mixing import always_mixed
from logitcache.yaml_text import load_yaml_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import ModuleType

    from torch import Tensor

__all__ = ["run_timm_script"]

_NAME, _TEMPERATURE = "--kd-model-name", "--kd-temperature"
_DEFAULT_TEMPERATURE = 4.0  # of the script
_URL = "https://raw.githubusercontent.com/huggingface/pytorch-image-models/v{version}/train.py"

_served: list[CacheForTimm] = []  # what the model ``logitcache_teacher`` is; at most one


def run_timm_script(
    script: str | Path,
    arguments: Sequence[str],
    *,
    cache: str,
    data: str | None = None,
    views: Sequence[str] = (),
    revision: str | None = None,
    on_report: Callable[[str], object] = lambda line: None,
) -> None:
    """Run timm's train.py with the images and a teacher of a cache.

    Args:
        script: Path of train.py.
        arguments: Arguments of the script.
        cache: Folder or URL of the cache.
        data: The images; by default those in the cache, or else the training folder of the script.
        views: Views of the cache to train on: numbers, ranges or ids; all by default.
        revision: sha256 of the required revision, or its first 12 or more digits.
        on_report: Called with each line of the report on what is taken from the cache.

    Raises:
        UsageError: There is no such script, its arguments need what the cache does not have, or it
            has not built a training loader by timm's function.
    """
    path = _existing(Path(script))
    opened = open_cache(cache, revision=revision)
    flags = _flags(arguments)
    teacher = TimmTeacher(opened, flags.name, temperature=flags.temperature)
    served = CacheForTimm(opened, teacher, data=data, views=views, on_report=on_report)
    if served.mixing is not None and flags.mixup_off_epoch:
        raise always_mixed()
    given = [*_without_name(arguments), *served.flags, _NAME, _TEACHER]
    with _serving(served), _without_fork(), _as_main(path, given):
        try:
            runpy.run_path(str(path), run_name="__main__")
        finally:
            if served.train_loader is not None:
                served.train_loader.close()
    if served.train_loader is None:
        raise UsageError(
            "the script has built no training loader, so the cache was not used",
            where=str(path),
            expected="a call of timm.data.create_loader with is_training=True",
            hint="give timm's own train.py, or use logitcache.loader in a script of your own",
        )


def logitcache_teacher(num_classes: int | None = None, **_: Any) -> CachedTeacher:
    """Return the cached teacher of the running script; registered with timm by this name."""
    if not _served:
        raise UsageError(
            "the model logitcache_teacher exists only while logitcache timm-train runs",
            hint="use logitcache.CachedTeacher in a script of your own",
        )
    return _served[0].teacher(num_classes)


_TEACHER = register_model(logitcache_teacher).__name__


class TimmTeacher(CachedTeacher):
    """A cached teacher that refuses what timm's distillation of features needs."""

    @property
    def head_hidden_size(self) -> int:
        """Number of features of a network, which a cached teacher does not have."""
        return self._refuse_features()

    def forward_features(self, images: Tensor) -> Tensor:
        """Return the features of a network, which a cached teacher does not have."""
        del images
        return self._refuse_features()

    def _refuse_features(self) -> NoReturn:
        raise UsageError(
            "timm's distillation of features needs the teacher network",
            where="--kd-distill-type feature",
            expected="logit or token",
            hint="use logitcache train, whose objective match takes cached features",
        )


@contextlib.contextmanager
def _serving(served: CacheForTimm) -> Iterator[None]:
    """Let timm's functions return what is made from the cache."""
    create_loader = timm.data.loader.create_loader

    def cached_loader(
        dataset: Any, input_size: Any, batch_size: int, is_training: bool = False, **arguments: Any
    ) -> Any:
        if is_training:
            return served.loader(dataset, input_size, batch_size, **arguments)
        return create_loader(dataset, input_size, batch_size, is_training, **arguments)

    with contextlib.ExitStack() as stack:
        for module in (timm.data, timm.data.loader):
            stack.enter_context(_replaced(module, "create_loader", cached_loader))
        for name, value in (
            ("create_naflex_loader", _refused("--naflex-loader")),
            ("Mixup", served.mix),
            ("FastCollateMixup", served.mix),
        ):
            stack.enter_context(_replaced(timm.data, name, value))
        _served.append(served)
        stack.callback(_served.clear)
        yield


@contextlib.contextmanager
def _replaced(module: ModuleType, name: str, value: object) -> Iterator[None]:
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)


def _refused(flag: str) -> Callable[..., NoReturn]:
    """Return a function that refuses a flag of the script."""

    def refuse(*_: object, **__: object) -> NoReturn:
        raise not_in_views(flag)

    return refuse


@contextlib.contextmanager
def _without_fork() -> Iterator[None]:
    """Let worker processes, as those of timm's validation loader, start without a fork.

    A fork copies the locks of this process, but not the threads that would release them: a worker
    that is forked while a thread of the training loader has one may wait for it forever.
    """
    before = multiprocessing.get_start_method(allow_none=True)
    if (before or multiprocessing.get_all_start_methods()[0]) != "fork":
        yield
        return
    multiprocessing.set_start_method("forkserver", force=True)
    try:
        yield
    finally:
        multiprocessing.set_start_method(before, force=True)


@contextlib.contextmanager
def _as_main(script: Path, arguments: Sequence[str]) -> Iterator[None]:
    """Give a script the arguments and the import path that ``python SCRIPT`` would give it."""
    before = sys.argv, sys.path
    sys.argv = [str(script), *arguments]
    sys.path = [str(script.parent), *sys.path]
    try:
        yield
    finally:
        sys.argv, sys.path = before


def _existing(script: Path) -> Path:
    """Return the absolute path of a script.

    Raises:
        UsageError: There is no such file.
    """
    if not script.is_file():
        raise UsageError(
            "there is no such script",
            where=str(script),
            expected="timm's train.py, which the timm package does not contain",
            hint=f"download {_URL.format(version=timm.__version__)} "
            "or clone the repository, then give its path: --script train.py",
        )
    return script.resolve()


class _Flags(NamedTuple):
    """Arguments of the script that are read before it runs."""

    name: str | None
    temperature: float
    mixup_off_epoch: int


def _flags(arguments: Sequence[str]) -> _Flags:
    """Return the name of the teacher and other values in the arguments of the script.

    Raises:
        UsageError: One of them is malformed.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("-c", "--config")
    parser.add_argument(_NAME)
    parser.add_argument(_TEMPERATURE, type=float)
    parser.add_argument("--mixup-off-epoch", type=int)
    try:
        given = vars(parser.parse_known_args(list(arguments))[0])
        values = load_yaml_file(Path(given["config"])) if given["config"] else {}
        found = {**(values if isinstance(values, dict) else {}), **_known(given)}
        return _Flags(
            found.get("kd_model_name"),
            float(found.get("kd_temperature") or _DEFAULT_TEMPERATURE),
            int(found.get("mixup_off_epoch") or 0),
        )
    except (argparse.ArgumentError, OSError, TypeError, ValueError) as error:
        raise UsageError(
            "the arguments of the script cannot be read", where="after --", got=str(error)
        ) from None


def _known(given: dict[str, Any]) -> dict[str, Any]:
    """Return the flags that were given."""
    return {name: value for name, value in given.items() if value is not None}


def _without_name(arguments: Sequence[str]) -> list[str]:
    """Return the arguments of the script without the name of the teacher."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument(_NAME)
    return parser.parse_known_args(list(arguments))[1]
