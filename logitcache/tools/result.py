"""Results of tools: small files, and the same values for programs."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from logitcache.files import write_file

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    _Base = DataclassInstance
else:
    _Base = object

__all__ = ["ToolResult"]


class ToolResult(_Base):
    """Base of the results of tools, which are dataclasses."""

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON values."""
        return asdict(self)

    def write(self, path: str) -> None:
        """Write the result to a YAML file, which stages and options read."""
        write_file(Path(path), yaml.safe_dump(self.to_json(), sort_keys=False))
