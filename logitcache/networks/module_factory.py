"""Networks from code of the user: ``MODULE:FACTORY``, a function that returns a network.

The module is found in the current folder or among the installed packages. Importing it runs it, so
a name of this form is as trusted as a program.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
import traceback
from collections.abc import Mapping
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from logitcache.errors import NetworkError, UsageError, nearest
from logitcache.networks.config import PRETRAINED
from logitcache.networks.timm_attributes import adopt
from logitcache.networks.weights import Layout, fit_weights
from logitcache.networks.weights_file import read_checkpoint, short_text
from logitcache.text import visible

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

    from logitcache.networks.config import NetworkConfig

__all__ = ["build_from_factory"]

_SETTINGS = (
    "input_size",
    "size",
    "mean",
    "std",
    "interpolation",
    "crop_pct",
    "crop_mode",
    "label_names",
)
"""What a factory may return of a network's input and classes, in the words of timm."""
_RGB = 3


def build_from_factory(
    config: NetworkConfig, num_classes: int | None, *, untrained: bool = False
) -> nn.Module:
    """Build a network by a function of the user.

    The function is called with ``kwargs``. It returns a network, or a network and a mapping with
    its input: ``input_size`` or ``size``, ``mean``, ``std``, ``interpolation``, ``crop_pct``,
    ``crop_mode`` and ``label_names`` as in timm's ``pretrained_cfg``. Without a mapping these are
    read from the network's attribute ``pretrained_cfg`` or ``default_cfg``.

    Raises:
        UsageError: There is no such module or function, or it returns something else.
        NetworkError: The module cannot be imported, the function raises an error, or the weights
            do not fit.
    """
    if config.weights == PRETRAINED:
        raise UsageError(
            "weights: pretrained is for networks of timm and torchvision",
            where=f"{config.model}@{PRETRAINED}",
            hint="leave it out: the factory loads its weights itself, or give a weights file",
        )
    module_name, _, factory_name = config.model.partition(":")
    with _importable():
        module = _imported(module_name, config.model)
        file = _file_of(module, config.model)
        factory = _attribute(module, factory_name, config.model)
        made = _called(factory, config)
    network, own = _parts(made, config)
    network = network.float()
    if config.weights is not None and not untrained:
        _load(network, Path(config.weights).expanduser())
    return adopt(network, config, own, num_classes=num_classes, code=file)


@contextlib.contextmanager
def _importable() -> Iterator[None]:
    """Let modules of the current folder be imported, before all others until the network is built.

    Later imports, such as those in a forward pass, find them too, but after installed ones.
    """
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)
        if folder not in sys.path:
            sys.path.append(folder)


def _imported(name: str, model: str) -> ModuleType:
    importlib.invalidate_caches()  # the file may be newer than the last look into its folder
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if name != missing and not name.startswith(f"{missing}."):
            raise _failed("the module cannot be imported", model, error) from error
        raise UsageError(
            f"there is no module {missing!r}",
            where=model,
            expected=f"{missing.partition('.')[0]}.py or a package in {Path.cwd()}, or an "
            "installed package",
            hint="run logitcache in the folder of the module, or install its package",
        ) from None
    except (Exception, SystemExit) as error:  # code of the user may raise anything
        raise _failed("the module cannot be imported", model, error) from error


def _attribute(module: ModuleType, name: str, model: str) -> Any:
    try:
        return attrgetter(name)(module)
    except AttributeError:
        known = [n for n, value in vars(module).items() if callable(value) and n[0] != "_"]
        raise UsageError(
            f"module {module.__name__!r} has no {name!r}",
            where=model,
            hint=nearest(name, known),
        ) from None


def _called(factory: Any, config: NetworkConfig) -> Any:
    if isinstance(factory, nn.Module):  # a network instead of a function that returns one
        return factory
    if not callable(factory):
        raise UsageError(
            "the factory is not a function",
            where=config.model,
            expected="a function or class that returns a torch.nn.Module",
            got=type(factory).__name__,
        )
    try:
        return factory(**config.kwargs)
    except (Exception, SystemExit) as error:  # code of the user may raise anything
        raise _failed("the factory raised an error", config.model, error) from error


def _failed(what: str, model: str, error: BaseException) -> NetworkError:
    """Return an error with the line of the user's code where it was raised, if any was run."""
    frames = traceback.extract_tb(error.__traceback__)
    inner = [frame for frame in frames if not frame.filename.startswith("<frozen")]
    file, line = inner[-1].filename, inner[-1].lineno
    if isinstance(error, SyntaxError):
        file, line = error.filename or file, error.lineno
    called = file != __file__  # else the call itself failed: the arguments do not fit
    return NetworkError(
        what,
        where=f"{model}: {visible(file)}, line {line}" if called else model,
        got=f"{type(error).__name__}: {short_text(error)}",
        hint="fix it there; its arguments are kwargs"
        if called
        else "give its arguments: --set teachers.NAME.kwargs.ARGUMENT=VALUE",
    )


def _parts(made: object, config: NetworkConfig) -> tuple[nn.Module, dict[str, Any]]:
    """Return the network and its input, in the form of timm's ``pretrained_cfg``."""
    if isinstance(made, nn.Module):
        found: Any = getattr(made, "pretrained_cfg", None) or getattr(made, "default_cfg", None)
        found = found.to_dict() if hasattr(found, "to_dict") else found
        return made, _settings(found, config) if isinstance(found, Mapping) else {}
    if isinstance(made, tuple | list) and len(made) == 2:
        network, settings = made
        if isinstance(network, nn.Module) and isinstance(settings, Mapping):
            for name in settings:
                if name not in _SETTINGS:
                    raise UsageError(
                        f"the factory returns an unknown setting {name!r}",
                        where=config.model,
                        hint=nearest(str(name), _SETTINGS),
                    )
            return network, _settings(settings, config)
    parts = f" of {', '.join(type(p).__name__ for p in made)}" if isinstance(made, tuple) else ""
    raise UsageError(
        "the factory does not return a network",
        where=config.model,
        expected="a torch.nn.Module, or a torch.nn.Module and a mapping with its input",
        got=f"{type(made).__name__}{parts}",
    )


def _settings(found: Mapping[str, Any], config: NetworkConfig) -> dict[str, Any]:
    """Return the settings of a network's input, checked."""
    own = {k: v for k, v in found.items() if v is not None}
    size = own.pop("size", own.pop("img_size", None))
    if "input_size" not in own and size is not None:
        own["input_size"] = size
    sides = own.get("input_size")
    if isinstance(sides, int):
        own["input_size"] = (_RGB, sides, sides)
    elif sides is not None:
        own["input_size"] = _numbers("input_size", sides, int, config)
    for name in ("mean", "std"):
        if name in own:
            own[name] = _numbers(name, own[name], float, config)
    return own


def _numbers(name: str, values: Any, kind: type, config: NetworkConfig) -> tuple[Any, ...]:
    """Return three numbers above zero (a mean may be zero).

    Raises:
        UsageError: They are something else.
    """
    try:
        numbers = tuple(kind(value) for value in values)
    except (TypeError, ValueError):
        numbers = ()
    least = 0 if name == "mean" else 1e-12
    if len(numbers) != _RGB or not all(least <= n < float("inf") for n in numbers):
        raise UsageError(
            f"the factory returns an unusable {name}",
            where=config.model,
            expected="(3, height, width)" if name == "input_size" else "a number for each channel",
            got=values,
        )
    return numbers


def _load(network: nn.Module, path: Path) -> None:
    """Load a weights file into a network; all of its tensors have to fit."""
    fitted = fit_weights(read_checkpoint(path), Layout.of(network))
    network.load_state_dict({**network.state_dict(), **fitted.body})


def _file_of(module: ModuleType, model: str) -> Path:
    path = getattr(module, "__file__", None)
    if path is None or not Path(path).is_file():
        raise NetworkError(
            "the module of the factory has no file, so its code cannot be recorded",
            where=model,
            expected="a module that is a .py file, or a package with an __init__.py",
            got=path or "no file",
        )
    return Path(path)
