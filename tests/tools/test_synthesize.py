"""Synthetic images: warped, mixed within a class, restyled."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from logitcache.cli.app import main
from logitcache.data.decode import decode
from logitcache.data.readers import open_source
from logitcache.errors import DataError, UsageError
from logitcache.tools.synthesize import SynthesizeConfig, synthesize
from tests.conftest import write_images

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_images(tmp_path_factory.mktemp("photos"), 3, ("cat", "dog")))


def made(photos: object, out: Path, **fields: Any) -> dict[str, NDArray[np.uint8]]:
    """Return the pixels that were written, by path below the folder."""
    synthesize(SynthesizeConfig.parse({"data": photos, "out": str(out), **fields}, "synthesize"))
    files = sorted(out.rglob("*.png"))
    return {path.relative_to(out).as_posix(): np.array(Image.open(path)) for path in files}


def pixels_of(photos: str) -> dict[str, NDArray[np.uint8]]:
    source = open_source(photos)
    decoded = (decode(source.read(i)).permute(1, 2, 0).numpy() for i in range(len(source.keys)))
    names = [f"{key.split('/')[0]}/{key.replace('/', '_')}" for key in source.keys]
    return {name.replace(".jpg", ".png"): image for name, image in zip(names, decoded, strict=True)}


def test_without_any_change_they_are_the_images_in_class_folders(
    photos: str, tmp_path: Path
) -> None:
    found, expected = made(photos, tmp_path / "out"), pixels_of(photos)
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[name], expected[name]) for name in found)


def test_the_same_seed_makes_the_same_images_and_another_one_others(
    photos: str, tmp_path: Path
) -> None:
    settings = {"count": 5, "warp": 0.3, "mix": 0.4, "noise": 0.05}
    first, again = (made(photos, tmp_path / name, **settings) for name in ("a", "b"))
    other = made(photos, tmp_path / "c", seed=1, **settings)
    assert len(first) == 5
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not any(np.array_equal(first[name], other[name]) for name in first.keys() & other.keys())


def test_mixtures_are_between_two_images_of_their_class(tmp_path: Path) -> None:
    """Classes of one color each: mixtures have that color, between the two that there are."""
    for name, colors in {"dark": (10, 50), "bright": (200, 240)}.items():
        (tmp_path / "in" / name).mkdir(parents=True)
        for i, color in enumerate(colors):
            Image.new("RGB", (6, 6), (color,) * 3).save(tmp_path / "in" / name / f"{i}.png")
    found = made(str(tmp_path / "in"), tmp_path / "out", count=40, mix=0.5, warp=1.0)
    dark, bright = (
        {int(pixels[0, 0, 0]) for name, pixels in found.items() if name.startswith(kind)}
        for kind in ("dark", "bright")
    )
    assert min(dark) >= 10
    assert max(dark) <= 50
    assert dark - {10, 50}, "some are mixed"
    assert min(bright) >= 200
    assert all(len(np.unique(pixels)) == 1 for pixels in found.values()), "no border is added"


def test_a_tone_is_finite(photos: str) -> None:
    with pytest.raises(UsageError, match=r"finite number[\s\S]*tone"):
        SynthesizeConfig.parse({"data": photos, "out": "o", "tone": [0, float("nan")]}, "")


def test_a_tone_inverts_and_its_inverse_restores(photos: str, tmp_path: Path) -> None:
    low = made(photos, tmp_path / "low", tone=[0.8, 0.2])
    back = made(str(tmp_path / "low"), tmp_path / "back", tone=[4 / 3, -1 / 3])
    for original, changed, restored in zip(
        pixels_of(photos).values(), low.values(), back.values(), strict=True
    ):
        expected = (0.8 - 0.6 * original / 255) * 255
        assert np.abs(changed - expected).max() <= 0.5 + 1e-4
        assert np.abs(restored.astype(int) - original).max() <= 1


def test_noise_has_its_deviation(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    Image.new("RGB", (64, 64), (128,) * 3).save(tmp_path / "in" / "grey.png")
    (noisy,) = made(str(tmp_path / "in"), tmp_path / "out", noise=0.1).values()
    assert noisy.std() / 255 == pytest.approx(0.1, rel=0.05)
    assert noisy.mean() == pytest.approx(128, abs=1)


def test_a_folder_is_replaced_as_a_whole(photos: str, tmp_path: Path) -> None:
    made(photos, tmp_path / "out", count=4)
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "left.png").write_bytes(b"of a process that was killed")
    values = {"data": photos, "out": str(tmp_path / "out"), "count": 2}
    synthesize(SynthesizeConfig.parse(values, "synthesize"), replace=True)
    assert len(list((tmp_path / "out").rglob("*.png"))) == 2
    assert not (tmp_path / "out.partial").exists()


def test_files_of_the_user_are_not_removed(photos: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    assert made(photos, tmp_path / "folder", count=2), "an empty folder may exist"
    (tmp_path / "file").write_text("text")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for out, data in (("folder", photos), ("folder", str(tmp_path / "folder")), ("file", photos)):
        with pytest.raises(UsageError, match="written to a new folder"):
            made(data, tmp_path / out)
    assert {path: path.read_bytes() for path in before} == before


def test_images_without_labels_have_no_class_folders_and_cannot_be_mixed(
    photos: str, tmp_path: Path
) -> None:
    data = {"name": photos, "unlabeled": True}
    assert all("/" not in name for name in made(data, tmp_path / "out"))
    with pytest.raises(DataError, match="mixed within their class"):
        made(data, tmp_path / "mixed", mix=0.5)


def test_the_command_writes_images(
    photos: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--data", photos, "--out", str(tmp_path / "out"), "--count", "3", "--warp", "0.2"]
    printed = []
    for more in ([], ["--json", "--out", str(tmp_path / "other")]):
        monkeypatch.setattr("sys.argv", ["logitcache", "tools", "synthesize", *flags, *more])
        with pytest.raises(SystemExit, match="0"):
            main()
        printed.append(capsys.readouterr().out)
    assert "3 images, made from 6 of" in printed[0]
    assert json.loads(printed[1])["images"] == 3
