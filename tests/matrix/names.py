"""The same precompute and training in processes that differ in what must not matter.

Started as a script, ``python -m tests.matrix.names PYTHON...`` goes over the interpreters, hash
seeds, locales and orders of listing, prints what came of each, and fails where two differ.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import locale
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["CLASSES", "Setting", "outcome", "write_inputs"]

CLASSES = ("007", "07", "10", "7", "Cat", "cat", "Igel", "igel", "É", "é", "\u0131gd\u0131r")
SEEDS = ("0", "1", "7", "random")
LOCALES = ("C", "C.UTF-8")
BUILT_LOCALES = {"de_DE.UTF-8": "de_DE", "tr_TR.UTF-8": "tr_TR"}
"""Decimal commas, and another lower case of I; built where the sources of locales lie."""
EVERYWHERE = ("classes", "exported classes", "fingerprint")
ORDERS = ("ignoring-case", "backward")


class Setting(NamedTuple):
    """In what processes differ."""

    python: str
    seed: str
    locale: str
    order: str


def write_inputs(root: Path) -> None:
    """Write images, and a teacher that has their classes in another order."""
    import torch

    from logitcache.networks.build import NetworkConfig, build_network, input_spec
    from logitcache.training.export.export import export_network
    from tests.conftest import write_images

    write_images(root / "images", 3, CLASSES)
    torch.manual_seed(0)
    network = build_network(NetworkConfig(model="resnet10t", kwargs=_small()), len(CLASSES))
    export_network(network, input_spec(network, 8), root / "teacher", CLASSES[::-1])


def outcome(inputs: Path, setting: Setting, **environment: str) -> dict[str, Any]:
    """Return what a process makes of the inputs: classes, and digests of all that is stored."""
    with tempfile.TemporaryDirectory() as out:
        done = subprocess.run(
            [setting.python, "-m", "tests.matrix.names", "run", inputs, out, setting.order],
            env={
                **{k: v for k, v in os.environ.items() if k != "PYTHONUTF8"},
                **environment,
                "PYTHONHASHSEED": setting.seed,
                "LC_ALL": setting.locale,
            },
            cwd=Path(__file__).parents[2],
            capture_output=True,
            check=False,
        )
    assert done.returncode == 0, (setting, done.stderr.decode(errors="replace")[-3000:])
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def run(inputs: Path, out: Path, order: str) -> dict[str, Any]:
    """Make a cache, train on it, and describe both."""
    locale.setlocale(locale.LC_ALL, "")
    _list_in_order(order)
    import torch

    from logitcache.cache.read.reader import open_cache
    from logitcache.precompute.build import build_cache
    from logitcache.precompute.config import PrecomputeConfig
    from logitcache.training.config import TrainConfig
    from logitcache.training.loop import train_student

    torch.set_num_threads(1)
    shared = {"cache": str(out / "cache"), "data": str(inputs / "images"), "threads": 1}
    teachers = {"cnn": {"model": f"local-dir:{inputs / 'teacher'}"}}
    precompute = {"teachers": teachers, "views": {"count": 1}, "unit_rows": 16, "batch_size": 8}
    build_cache(PrecomputeConfig.parse({**shared, **precompute, "min_accuracy": 0}, "precompute"))
    student = {"model": "resnet10t", "kwargs": _small(), "size": 32}
    train = {"out": str(out / "run"), "val": str(inputs / "images"), "student": student}
    settings = {"epochs": 1, "batch_size": 16, "device": "cpu"}
    result = train_student(TrainConfig.parse({**shared, **train, **settings}, "train"))
    cache = open_cache(out / "cache")
    stored = {
        path.relative_to(out).as_posix(): path.read_bytes()
        for path in (out / "cache").glob("**/c/**/*")  # commits name the versions of libraries
        if path.is_file()
    }
    exported = out / "run" / "export"
    assert result.evaluation is not None
    return {
        "classes": list(cache.class_names),
        "exported classes": json.loads((exported / "config.json").read_bytes())["label_names"],
        "fingerprint": cache.manifest.data.fingerprint,
        "shards": _digest(part for key in sorted(stored) for part in (key.encode(), stored[key])),
        "weights": _digest([(exported / "model.safetensors").read_bytes()]),
        "loss": repr(result.evaluation.loss),
    }


def _small() -> dict[str, Any]:
    return {"channels": [16, 16, 16, 16], "stem_width": 16}


def _digest(parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def _list_in_order(order: str) -> None:
    """List folders as another file system would; the order is what differs, not what is there."""
    scandir, listdir = os.scandir, os.listdir
    backward = order == "backward"

    def key(name: str) -> tuple[str, str]:
        return name.casefold(), name

    class Listed:
        def __init__(self, path: Any = ".") -> None:
            with scandir(path) as entries:
                found = sorted(entries, key=lambda entry: key(os.fsdecode(entry.name)))
            self.entries = iter(found[::-1] if backward else found)

        def __iter__(self) -> Any:
            return self.entries

        def __next__(self) -> Any:
            return next(self.entries)

        def __enter__(self) -> Listed:
            return self

        def __exit__(self, *_: object) -> None:
            self.close()

        def close(self) -> None:
            self.entries = iter(())

    def listed(path: Any = ".") -> Any:
        names = listdir(path)
        return sorted(names, key=lambda name: key(os.fsdecode(name)), reverse=backward)

    patched: Any = os
    patched.scandir, patched.listdir = Listed, listed


def _build_locales(folder: Path) -> list[str]:
    """Return the locales of other languages that can be built here."""
    if shutil.which("localedef") is None:
        return []
    built = []
    for name, source in BUILT_LOCALES.items():
        command = ["localedef", "-i", source, "-f", "UTF-8", str(folder / name)]
        if subprocess.run(command, capture_output=True, check=False).returncode == 0:
            built.append(name)
    return built


def main(pythons: list[str]) -> int:
    """Print what comes of each setting; return 1 where two differ."""
    found: dict[Setting, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        write_inputs(Path(folder))
        built = _build_locales(Path(folder))
        for setting in map(
            Setting._make, itertools.product(pythons, SEEDS, (*LOCALES, *built), ORDERS)
        ):
            environment = {"LOCPATH": folder} if setting.locale in built else {}
            found[setting] = outcome(Path(folder), setting, **environment)
            about = {k: v[:12] if isinstance(v, str) else v for k, v in found[setting].items()}
            version = subprocess.run([setting.python, "-V"], capture_output=True, check=True)
            print(version.stdout.decode().strip(), *setting[1:], json.dumps(about), flush=True)
    return _differences(found)


def _differences(found: dict[Setting, dict[str, Any]]) -> int:
    """Print how many values there are of each outcome; return 1 where they must not differ.

    Interpreters may have other versions of libraries, and these other last bits.
    """
    failed = 0
    for name in next(iter(found.values())):
        values: dict[str, set[str]] = {}
        for setting, outcomes in found.items():
            group = "everywhere" if name in EVERYWHERE else setting.python
            values.setdefault(group, set()).add(json.dumps(outcomes[name]))
        failed |= any(len(different) > 1 for different in values.values())
        total = set().union(*values.values())
        print(f"{name}: {len(total)} in {len(found)} runs: {', '.join(sorted(total))}")
    return failed


if __name__ == "__main__":
    if sys.argv[1:2] == ["run"]:
        print(json.dumps(run(Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])))
    else:
        sys.exit(main(sys.argv[1:]))
