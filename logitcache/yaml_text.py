"""Parsing of YAML with limits on length, depth and aliases.

A few lines of aliases can represent billions of values, which take no memory until they are
written, compared or merged. So expanded values are counted before anything is built from them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import yaml
from yaml.composer import ComposerError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["dump_yaml", "load_yaml", "load_yaml_file"]

_MOST_BYTES = 2 * 2**20
_MOST_VALUES = 100_000  # keys count as values
_MOST_LEVELS = 64
_LONGEST_NUMBER = 400  # characters; numbers of base 60 would take quadratic time
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


def load_yaml_file(path: Path) -> Any:
    """Read a YAML file in UTF-8.

    Raises:
        ValueError: It is not valid YAML, or it is too long.
        OSError: It cannot be read.
    """
    with path.open("rb") as file:
        content = file.read(_MOST_BYTES + 1)
    if len(content) > _MOST_BYTES:
        raise ValueError(f"the file is longer than {_MOST_BYTES} bytes")
    return load_yaml(content.decode())


def load_yaml(text: str) -> Any:
    """Read YAML.

    Raises:
        ValueError: It is not valid YAML, a mapping has a key twice, or it is too large or too
            deeply nested with its aliases expanded; the message names the line. All errors of
            PyYAML's constructors are converted.
    """
    try:
        return _BoundedLoader(text).get_single_data()
    except yaml.MarkedYAMLError as error:
        raise ValueError(_described(error)) from None
    except (yaml.YAMLError, ArithmeticError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(str(error)) from None
    except RecursionError:
        raise ValueError("the document is nested too deeply") from None


def _described(error: yaml.MarkedYAMLError) -> str:
    """Return what is wrong and where, in one line."""
    found = [error.problem or error.context or "not YAML"]
    mark = error.problem_mark or error.context_mark
    if mark is not None:
        found.append(f"line {mark.line + 1}, column {mark.column + 1}")
    return ", ".join(found)


def dump_yaml(values: Mapping[str, Any]) -> str:
    """Return plain values as YAML, in their order."""
    text: str = yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True)
    return text


class _BoundedLoader(yaml.SafeLoader):
    """PyYAML's safe loader, with limits that are checked while the document is read."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._level = 0
        self._values: dict[yaml.Node, int] = {}

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Read one node, and count its values with aliases expanded."""
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]  # PyYAML is untyped
        self._level += 1
        if self._level > _MOST_LEVELS:
            raise _refused(f"more than {_MOST_LEVELS} levels", event)
        node: yaml.Node | None = super().compose_node(parent, index)
        self._level -= 1
        if node is None:
            return None
        if len(self._values) > _MOST_VALUES:
            raise _refused(f"more than {_MOST_VALUES} values", event)
        if node not in self._values:
            if isinstance(event, yaml.AliasEvent):
                raise _refused("an alias inside its own anchor", event)
            self._values[node] = self._counted(node, event)
        return node

    def _counted(self, node: yaml.Node, event: Any) -> int:
        if isinstance(node, yaml.ScalarNode):
            if node.tag in _NUMBERS and len(node.value) > _LONGEST_NUMBER:
                raise _refused(f"a number of more than {_LONGEST_NUMBER} characters", event)
            return 1
        parts = node.value
        if isinstance(node, yaml.MappingNode):
            _check_unique(node)
            parts = [part for pair in parts for part in pair]
        count = 1 + sum(self._values[part] for part in parts)
        if count > _MOST_VALUES:
            raise _refused(f"more than {_MOST_VALUES} values with aliases expanded", event)
        return count


def _check_unique(node: yaml.MappingNode) -> None:
    """Refuse a mapping with a key twice, of which PyYAML keeps the last without a message."""
    seen: set[tuple[str, str]] = set()
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode):
            if (key.tag, key.value) in seen:
                raise _refused(f"the key {key.value!r} is given twice", key)
            seen.add((key.tag, key.value))


def _refused(why: str, place: Any) -> ComposerError:
    return ComposerError(None, None, why, place.start_mark)
