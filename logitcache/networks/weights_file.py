"""Reading of weights files: safetensors, state dicts of ``torch.save``, Lightning checkpoints.

Only tensors are read. The format is recognized by the file's first bytes, not by the ending of its
name, and a pickle that needs code is refused. Nested mappings are flattened into dotted names, so
that a wrapper such as ``{"state_dict": {...}}`` is a prefix of names like any other.
"""

from __future__ import annotations

import argparse
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from logitcache.errors import NetworkError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Checkpoint", "read_checkpoint", "short_text", "shown"]

_EXPECTED = "a state dict as .safetensors, .pth, .pt, .bin or .ckpt"
_PREFERRED = ("state_dict_ema", "model_ema", "state_dict", "model")
"""Top-level keys in the order in which ``timm.models.load_state_dict`` chooses among them."""

_WRAPPERS = re.compile(
    r"(?:(?<=\.)|^)(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)
"""Names of PyTorch's wrappers of modules at any depth; PyTorch reserves them."""

_DEEPEST = 8
_GLOBAL = re.compile(r"GLOBAL (\S+)")
_PICKLE = b"\x80"
_OF_TORCH = 2  # the version of the pickle protocol that torch.save writes
_SETTINGS = (
    "argparse.",
    "pathlib.",
    "numpy.",
    "omegaconf.",
    "collections.",
    "typing.",
    "datetime.",
)
"""Modules whose objects in a checkpoint are settings or metrics, not a network."""

_FORMATS = {
    b"\x1f\x8b": "a gzip archive",
    b"BZh": "a bzip2 archive",
    b"\xfd7zXZ": "an xz archive",
    b"\x28\xb5\x2f\xfd": "a Zstandard archive",
    b"7z\xbc\xaf": "a 7z archive",
    b"\x89HDF": "an HDF5 file (Keras weights?)",
    b"\x93NUMPY": "a NumPy array (.npy)",
    b"GGUF": "a GGUF file",
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"%PDF": "a PDF document",
}
_NEXT = {
    "NumPy": "JAX weights are converted by timm: timm.create_model(NAME, "
    "checkpoint_path='weights.npz'), then torch.save of its state_dict()",
    "archive": "extract the archive and give the weights file in it",
    "TorchScript": "save the state dict of the original network: "
    "torch.save(network.state_dict(), 'weights.pth')",
    "Git LFS": "download the file itself with 'git lfs pull'",
    "'<": "this is a web page: download the file itself",
}


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a weights file.

    Attributes:
        path: The file.
        roots: Tensors by dotted name, in the order of preference: those under the key that timm
            would choose, then all of them.
        architecture: Architecture in the file (``arch``); None without one.
    """

    path: Path
    roots: tuple[dict[str, Tensor], ...]
    architecture: str | None = None


def read_checkpoint(path: Path) -> Checkpoint:
    """Read the tensors of a weights file, and nothing else.

    Args:
        path: The file.

    Raises:
        NetworkError: The file does not exist, has another format, is damaged, needs code, or has
            no tensors of a network.
    """
    if not path.is_file():
        hint = "check the path after the model's @"
        if path.is_dir():
            hint = "an exported folder is given as the model: local-dir:FOLDER"
        raise NetworkError("the weights file does not exist", where=path, hint=hint)
    content = _read(path)
    optimizers: list[str] = []
    tensors = dict(_flattened(content, "", optimizers))
    if not tensors:
        raise NetworkError(
            "the file contains no weights of a network",
            where=path,
            expected="tensors by name",
            got="the state of an optimizer" if optimizers else _summary(content),
            hint="save the state_dict() of the network",
        )
    top = content if isinstance(content, Mapping) else {}
    chosen = [dict(_flattened(top[k], f"{k}.", [])) for k in _PREFERRED if _is_nested(top.get(k))]
    architecture = top.get("arch")
    return Checkpoint(
        path,
        (*(root for root in chosen if root), tensors),
        architecture if isinstance(architecture, str) else None,
    )


def shown(name: str) -> str:
    """Return a name from a file without control characters, to be printed."""
    return name if name.isprintable() else ascii(name)


def _read(path: Path) -> Any:
    """Return the content of a file in the format of its first bytes."""
    with path.open("rb") as file:
        start = file.read(1024)
    if start[8:9] == b"{" and 0 < int.from_bytes(start[:8], "little") < path.stat().st_size:
        try:
            return load_file(path)
        except Exception as error:  # safetensors has exceptions of its own
            raise _unreadable(path, short_text(error)) from error
    other = _other_format(path, start)
    if other is not None:
        hint = next((text for word, text in _NEXT.items() if word in other), None)
        raise _unreadable(path, other, hint)
    return _read_pickle(path)


def _read_pickle(path: Path) -> Any:
    """Return a pickle of tensors and plain containers."""
    try:
        # timm's training checkpoints have their arguments in a Namespace. The warnings are about
        # versions of the pickle protocol, on which tensors do not depend.
        with (
            path.open("rb") as file,  # torch judges the format of a path by its ending
            torch.serialization.safe_globals([argparse.Namespace]),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zip and torch raise different exceptions
        needed = _globals_of(path) or _GLOBAL.findall(str(error))
        if needed:
            raise _needs_code(path, needed) from None
        raise _unreadable(path, _damage(path, error)) from error


def _damage(path: Path, error: Exception) -> str:
    """Return why a pickle cannot be read; torch's own message is about its arguments."""
    with path.open("rb") as file:
        start = file.read(2)
    if start[:1] == _PICKLE and start[1] > _OF_TORCH:
        return f"a pickle of protocol {start[1]} instead of torch.save's {_OF_TORCH}"
    if isinstance(error, EOFError):
        return "a truncated pickle, perhaps of an interrupted download"
    if isinstance(error, pickle.UnpicklingError):
        return "a damaged file, or a pickle of other objects than tensors"
    return f"a damaged file: {short_text(error)[:120]}"


def _globals_of(path: Path) -> list[str]:
    """Return the classes and functions that a pickle needs beyond those of plain tensors."""
    try:
        found = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
    except Exception:  # not a zip file of torch.save, or a damaged one
        return []
    return sorted(name for name in found if name != "argparse.Namespace")


def _needs_code(path: Path, needed: list[str]) -> NetworkError:
    """Return the error for a pickle that would run code when it is read."""
    settings = all(name.startswith(_SETTINGS) for name in needed)
    got = "settings or metrics in addition to the weights" if settings else "objects with code"
    alone = "checkpoint['state_dict']" if settings else "checkpoint.state_dict()"
    other = "or another key" if settings else "or checkpoint['state_dict'] for a mapping"
    return NetworkError(
        "the file contains more than tensors and is not loaded",
        where=path,
        expected="tensors and plain containers, so that no code of the file is executed",
        got=f"{got}: {shown(', '.join(needed[:5]))}",
        hint="save only the state dict, if you trust the file: "
        f"checkpoint = torch.load({str(path)!r}, weights_only=False); "
        f"torch.save({alone}, 'weights.pth') ({other})",
    )


def _other_format(path: Path, start: bytes) -> str | None:
    """Return the format of a file that cannot be weights of PyTorch; None if it may be."""
    if not start:
        return "an empty file"
    if start.startswith(b"PK"):
        return _zip_format(path)
    known = next((text for magic, text in _FORMATS.items() if start.startswith(magic)), None)
    if known is not None:
        return known
    if start[257:262] == b"ustar":
        return "a tar archive"
    # a character of several bytes may be cut at the end; the rest has to be text
    text = start.decode("utf-8", errors="ignore")
    if len(text.encode()) > len(start) - 4 and all(c.isprintable() or c.isspace() for c in text):
        if text.startswith("version https://git-lfs"):
            return "a Git LFS pointer"
        line = text.strip()[:24].partition("\n")[0].strip()
        return f"a text file that begins with {line!r}"
    if not start.startswith(_PICKLE):
        return f"a file of an unknown format that begins with the bytes {start[:8].hex(' ')}"
    return None


def _zip_format(path: Path) -> str | None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile:
        return "a truncated zip file, perhaps of an interrupted download"
    if any(name.endswith("/constants.pkl") for name in names):
        return "a TorchScript program"
    if any(name.endswith("data.pkl") for name in names):
        return None
    if names and all(name.endswith(".npy") for name in names):
        return "a NumPy archive (.npz)"
    return f"a zip archive of {len(names)} files, beginning with {names[:1]}"


def _unreadable(path: Path, got: str, hint: str | None = None) -> NetworkError:
    return NetworkError(
        "the weights cannot be read", where=path, expected=_EXPECTED, got=got, hint=hint
    )


def _flattened(value: Any, prefix: str, optimizers: list[str]) -> list[tuple[str, Tensor]]:
    """Return the tensors of nested mappings and lists by dotted name.

    Args:
        value: A mapping, a list, a tensor or anything else.
        prefix: The names above it, with a final dot.
        optimizers: List to which the names of optimizer states are added, which are skipped.
    """
    if isinstance(value, Tensor):
        usable = prefix and value.layout == torch.strided and not value.is_meta
        return [(_WRAPPERS.sub("", prefix.removesuffix(".")), value)] if usable else []
    if not _is_nested(value) or prefix.count(".") > _DEEPEST:
        return []
    if isinstance(value, Mapping):
        optimizer = {"state", "param_groups"} <= value.keys()
        if optimizer:
            optimizers.append(prefix)
        items = [(k, v) for k, v in value.items() if not (optimizer and k == "state")]
    else:
        items = list(enumerate(value))
    return [
        pair for key, inner in items for pair in _flattened(inner, f"{prefix}{key}.", optimizers)
    ]


def _is_nested(value: Any) -> bool:
    return isinstance(value, Mapping | list | tuple)


def _summary(content: Any) -> str:
    """Return a description of content without named tensors."""
    if isinstance(content, Tensor):
        return "a single tensor"
    if not isinstance(content, Mapping):
        return f"an object of type {type(content).__name__}"
    if any(isinstance(value, Tensor) for value in content.values()):
        return "tensors that have no data, or that are sparse"
    keys = ", ".join(str(key) for key in list(content)[:5])
    return f"a mapping of {shown(keys)}" if content else "an empty mapping"


def short_text(error: BaseException) -> str:
    """Return the first lines of an error's message on one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return "; ".join(lines[:3])[:300]
