"""Reading weights files: what is refused, and how it is described."""

from __future__ import annotations

import io
import pathlib
import zipfile
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from safetensors.torch import save
from torch import nn

from logitcache.errors import NetworkError
from tests.networks.test_weights import assert_same, load, optimizer, refusal, state_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


class _Code:
    def __reduce__(self) -> tuple[object, ...]:
        return (print, ("this must not run",))


@pytest.mark.parametrize(
    ("extra", "got", "hint"),
    [
        (_Code(), "objects with code", "checkpoint.state_dict()"),
        (
            np.float64(0.5),
            "settings or metrics in addition to the weights: numpy",
            "['state_dict']",
        ),
        (
            pathlib.PurePosixPath("runs"),
            "settings or metrics in addition to the weights",
            "['state_dict']",
        ),
        (nn.Linear(2, 2), "torch.nn.modules.linear.Linear", "checkpoint.state_dict()"),
    ],
)
@pytest.mark.parametrize("new_format", [True, False])
def test_a_pickle_that_needs_code_is_refused_with_a_way_out(
    extra: object,
    got: str,
    hint: str,
    new_format: bool,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "w.pth"
    content = {"state_dict": state_of("vit"), "extra": extra}
    torch.save(content, path, _use_new_zipfile_serialization=new_format)
    with pytest.raises(NetworkError, match="more than tensors") as caught:
        load(path, "vit")
    assert got in str(caught.value.got)
    assert hint in str(caught.value.hint)
    assert "must not run" not in capsys.readouterr().out


def zipped(name: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, "content")
    return buffer.getvalue()


def saved(content: object, **options: bool) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def npz() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, kernel=np.zeros(3))
    return buffer.getvalue()


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
@pytest.mark.parametrize(
    ("content", "got", "hint"),
    [
        (lambda: b"", "an empty file", None),
        (lambda: b"<!DOCTYPE html><html>", "a text file that begins with '<!DOCTYPE", "web page"),
        (lambda: b'{"error": "not found"}', 'a text file that begins with \'{"error"', None),
        (
            lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n",
            "a Git LFS pointer",
            "git lfs pull",
        ),
        (lambda: b"\x1f\x8b\x08\x00\x00", "a gzip archive", "extract"),
        (lambda: zipped("run/w.pth"), "a zip archive of 1 files", "extract"),
        (lambda: saved(state_of("vit"))[:3000], "a truncated zip file", None),
        (npz, "a NumPy archive", "timm"),
        (lambda: b"\x89HDF\r\n\x1a\n", "an HDF5 file", None),
        (lambda: bytes(range(7, 200)), "begins with the bytes 07 08", None),
        (lambda: b"\x80\x02\x8a\nl", "a truncated pickle", None),
        (lambda: b"\x80\x04\x95\x0a\x00\x00\x00\x00\x00\x00\x00}\x94.", "protocol 4", None),
        (lambda: save(state_of("vit"))[:5000], "deserializing header", None),
    ],
)
def test_a_file_that_is_no_weights_is_described(
    content: Callable[[], bytes], got: str, hint: str | None, ending: str, tmp_path: Path
) -> None:
    path = tmp_path / f"w.{ending}"
    path.write_bytes(content())
    with pytest.raises(NetworkError, match="the weights cannot be read") as caught:
        load(path, "vit")
    assert got in str(caught.value.got)
    assert hint is None or hint in str(caught.value.hint)


@pytest.mark.parametrize(
    ("content", "got"),
    [
        (lambda: optimizer("vit"), "the state of an optimizer"),
        (lambda: {"optimizer": optimizer("vit"), "epoch": 3}, "the state of an optimizer"),
        (dict, "an empty mapping"),
        (lambda: {"state_dict": {}, "epoch": 1}, "a mapping of state_dict, epoch"),
        (lambda: torch.ones(3), "a single tensor"),
        (lambda: 7, "an object of type int"),
        (lambda: {"fc.weight": torch.ones(2, device="meta")}, "have no data"),
    ],
)
def test_a_file_without_weights_is_described(
    content: Callable[[], object], got: str, tmp_path: Path
) -> None:
    error = refusal(tmp_path, content(), "vit")
    assert "no weights of a network" in error.what
    assert got in str(error.got)


def test_a_file_is_read_by_its_content_not_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(save(state_of("vit")))
    (tmp_path / "b.safetensors").write_bytes(saved(state_of("vit")))
    for path in (tmp_path / "a.bin", tmp_path / "b.safetensors"):
        assert_same(load(path, "vit"), state_of("vit"))


def test_a_folder_as_weights_is_explained(tmp_path: Path) -> None:
    with pytest.raises(NetworkError, match="local-dir:"):
        load(tmp_path, "vit")
