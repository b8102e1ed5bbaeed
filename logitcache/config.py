"""Base class of all configurations: frozen, with strict names and values.

Each package keeps its own configuration class next to the code that reads it. Flags, YAML files and
Python calls fill the same classes, so this is the one place where user input is checked.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    ValidationError,
    ValidationInfo,
    model_validator,
)
from pydantic_core import PydanticCustomError

from logitcache.errors import UsageError, nearest, redacted
from logitcache.yaml_text import load_yaml_file

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pydantic._internal._model_construction import ModelMetaclass as _ModelClass
else:
    _ModelClass = type(BaseModel)  # it has no public name

__all__ = [
    "Bytes",
    "Config",
    "Former",
    "is_plain",
    "key_of",
    "or_file_with",
    "unless_from_python",
]

_PLAIN_VALUES = "values of files and flags"  # context of their validation
_LONGEST = 200  # characters of a value that a message repeats
# pydantic adds the branch of a union to the path of an error; users have never seen these names
_OF_UNIONS = ("constrained-int", "dict[str,constrained-int]", "literal['auto']")
_NO_MAPPING = ("model_type", "model_attributes_type", "dict_type")

_UNITS = {
    **{f"{prefix}b": 10 ** (3 * power) for power, prefix in enumerate(["", "k", "m", "g", "t"])},
    **{f"{prefix}ib": 2 ** (10 * power) for power, prefix in enumerate("kmgt", start=1)},
}


def _bytes(value: object) -> object:
    """Return the number of bytes that ``512MiB`` or ``2GB`` stands for; other types unchanged."""
    if not isinstance(value, str):
        return value
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([kmgt]?i?b)?", value.strip().lower())
    if not found or found[2] == "ib":
        raise ValueError(f"{value!r} is not a number of bytes; write for example 2GB or 512MiB")
    return int(float(found[1]) * _UNITS[found[2] or "b"])


Bytes = Annotated[int, BeforeValidator(_bytes)]
"""A number of bytes, as ``2GB``, ``512MiB`` or a plain number."""


def key_of(table: Callable[[], Mapping[str, object]]) -> AfterValidator:
    """Return the validator of an option that names an entry of an open table.

    Args:
        table: Returns the table, implementations by name. It is called for every value, so the
            table may be defined below the configuration. Name an annotation with this validator at
            module level: pydantic evaluates those of a class when the class is made.
    """

    def known(name: str) -> str:
        if name not in table():
            raise ValueError(f"unknown name {name!r}, expected one of {', '.join(table())}")
        return name

    return AfterValidator(known)


def or_file_with(field: str) -> BeforeValidator:
    """Return the validator of a mapping that may be given as a file that contains it.

    The content of the file takes its place, so that what is stored of a run is complete.

    Args:
        field: Name of the mapping in the YAML file, as ``logitcache tools`` writes it.
    """

    def content(value: object) -> object:
        if not isinstance(value, str):
            return value
        try:
            values = load_yaml_file(Path(value))
        except OSError as error:
            raise ValueError(f"the file {value} cannot be read: {error.strerror}") from None
        except ValueError as error:
            raise ValueError(
                f"{value} is not a YAML file: {' '.join(str(error).split())}"
            ) from None
        found = values.get(field) if isinstance(values, Mapping) else None
        if isinstance(found, Mapping):
            return found
        raise ValueError(f"the YAML file {value} has no mapping {field!r}")

    return BeforeValidator(content)


def is_plain(info: ValidationInfo) -> bool:
    """Return whether values of files and flags are validated, for which no objects stand."""
    return info.context is _PLAIN_VALUES


def _given(value: object, info: ValidationInfo) -> object:
    if value is None and is_plain(info):
        raise PydanticCustomError("missing", "Field required")
    return value


unless_from_python = AfterValidator(_given)
"""Validator of an option with the default None that files and flags have to give.

In Python, what it stands for can be passed as an object.
"""


@dataclass(frozen=True)
class Former:
    """Names of options and values in the previous version; they work for one release.

    Attributes:
        keys: Present names of options by their former names.
        values: Present values by their former values, by option.
    """

    keys: Mapping[str, str] = field(default_factory=dict)
    values: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def renamed(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return values under their new names; each former one is a deprecation warning."""
        found: dict[str, Any] = {}
        for key, value in values.items():
            name = self.keys.get(key, key)
            if name != key and name not in values:
                _warn_renamed(f"option {key!r}", name)
                key = name
            new = self.values.get(key, {}).get(value) if isinstance(value, str) else None
            if new is not None:
                _warn_renamed(f"value {value!r} of {key!r}", new)
            found[key] = value if new is None else new
        return found


def _warn_renamed(former: str, name: str) -> None:
    # a FutureWarning is shown to users by default, a DeprecationWarning only to developers
    text = f"{former} is now {name!r}; the former name will be an error in the next release"
    warnings.warn(text, FutureWarning, stacklevel=4)


class _CheckedClass(_ModelClass):
    """Metaclass that turns validation errors of constructors into :class:`.UsageError`."""

    def __call__(self, *args: Any, **values: Any) -> Any:
        try:
            return super().__call__(*args, **values)
        except ValidationError as error:
            model: Any = self
            raise _usage_error(model, error, values, self.__name__) from None


class Config(BaseModel, metaclass=_CheckedClass):
    """Base of the configurations: unknown keys are errors, instances do not change.

    Raises:
        UsageError: An unknown key (the nearest known one is offered) or an unusable value.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False
    )
    former: ClassVar[Former] = Former()

    @model_validator(mode="before")
    @classmethod
    def _renamed(cls, values: object) -> object:
        return cls.former.renamed(values) if isinstance(values, Mapping) else values

    @classmethod
    def parse(cls, values: object, where: str, *, from_python: bool = False) -> Self:
        """Return the configuration with plain values, as YAML files and flags give them.

        Args:
            values: Mapping from option names to values.
            where: Name of the section, for error messages.
            from_python: Whether options that objects in Python stand for may be missing.

        Raises:
            UsageError: An unknown key (the nearest known one is offered) or an unusable value.
        """
        try:
            return cls.model_validate(values, context=None if from_python else _PLAIN_VALUES)
        except ValidationError as error:
            raise _usage_error(cls, error, values, where) from None


def _usage_error(
    config: type[BaseModel], error: ValidationError, values: object, where: str
) -> UsageError:
    """Return the error of this package for the first validation error of pydantic."""
    errors = error.errors()
    # an unknown name comes first: a misspelled option is reported as missing, too
    first = next((e for e in errors if e["type"] == "extra_forbidden"), _of_its_form(errors))
    path = [str(part) for part in first["loc"] if part not in _OF_UNIONS]
    place = ".".join([where, *path])
    if first["type"] == "extra_forbidden":
        known = _fields_at(config, first["loc"][:-1])
        hint = nearest(path[-1], known)
        empty = _empty_before(values, path)
        if empty is not None and "did you mean" not in hint:
            hint = f"{empty!r}, above it, is empty: indent {path[-1]!r} if it belongs to it"
        return UsageError(f"unknown option {path[-1]!r}", where=place, hint=hint)
    if first["type"] == "missing":
        # neither flags nor --set reach into a list
        hint = "give it as a flag, with --set, or in the file"
        if any(part.isdecimal() for part in path):
            hint = "give it in the file, or set the whole list: --set 'NAME=[{…}]'"
        return UsageError(f"option {path[-1]!r} is missing", where=place, hint=hint)
    if first["type"] in _NO_MAPPING:
        return UsageError(
            f"{path[-1] if path else where!r} has to be a mapping of options to values",
            where=place,
            expected="lines like 'name: value', indented below it",
            got=_shown(first["input"]),
        )
    return UsageError(
        first["msg"].removeprefix("Value error, "), where=place, got=_shown(first["input"])
    )


def _of_its_form(errors: Sequence[Any]) -> Any:
    """Return the first error; of a union, that of the branch that takes values of this form."""
    *place, branch = errors[0]["loc"] or ("",)
    if branch in _OF_UNIONS:
        for error in errors:
            if [*error["loc"]][: len(place)] == place and not error["type"].endswith("_type"):
                return error
    return errors[0]


def _shown(value: object) -> str | None:
    """Return a value for a message: abbreviated, without credentials; None for a whole section."""
    if isinstance(value, Mapping):
        return None
    text = redacted(repr(value))
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def _empty_before(values: object, path: list[str]) -> str | None:
    """Return the last option before ``path`` without a value, as wrong indentation leaves it."""
    for part in path[:-1]:
        values = values.get(part) if isinstance(values, Mapping) else None
    if not isinstance(values, Mapping) or path[-1] not in values:
        return None
    names = list(values)
    before = names[: names.index(path[-1])]
    return next((str(name) for name in reversed(before) if values[name] is None), None)


def _fields_at(config: type[BaseModel], path: tuple[Any, ...]) -> list[str]:
    """Return the names that are known at a path inside nested configurations."""
    for part in path:
        field = config.model_fields.get(str(part))
        config = next(iter(_models_in(field.annotation if field else None)), config)
    return list(config.model_fields)


def _models_in(annotation: object) -> list[type[BaseModel]]:
    """Return the pydantic models that occur in a type annotation."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    found = []
    for argument in getattr(annotation, "__args__", ()):
        found += _models_in(argument)
    return found
