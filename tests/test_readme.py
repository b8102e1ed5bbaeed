"""The README is run: its commands, its example and its four lines."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import timm
import torch

from logitcache.cli import app as cli

if TYPE_CHECKING:
    from torch import Tensor

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()

# What makes the example end in seconds; everything else is as it is typed in the README.
SMALLER = {
    "train": ["--epochs", "1", "--batch-size", "16"],
    "precompute": ["--views", "2", "--batch-size", "16"],
    "inspect": [],
    "verify": [],
    "evaluate": [],
}


def blocks(language: str) -> list[str]:
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    return [content for name, content in fenced if name == language]


def test_ci_runs_the_commands_as_they_are_typed() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    commands = [block.strip() for block in blocks("bash") if "pip install" in block]
    assert len(commands) == 2
    for command in commands:
        assert command in script.splitlines()


def test_the_example_and_the_four_lines(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for split in ("train", "val"):
        shutil.copytree(images, tmp_path / "photos" / split)
    (example,) = [block for block in blocks("bash") if "photos" in block]
    for line in example.replace("\\\n", " ").splitlines():
        command, *arguments = shlex.split(line)[1:]
        size = 224 if "vit_tiny_patch16_224" in arguments else 32
        fit = ["--set", f"student.size={size}"] if command == "train" else []
        monkeypatch.setattr(
            "sys.argv", ["logitcache", command, *arguments, *SMALLER[command], *fit]
        )
        with pytest.raises(SystemExit) as left:
            cli.main()
        assert not left.value.code, line
    student = timm.create_model("local-dir:runs/vit/export", pretrained=True)
    losses: list[Tensor] = []
    (four_lines,) = blocks("python")
    code = four_lines.replace("batch_size=256", "batch_size=20")
    exec(f"{code}    losses.append(loss)", {"student": student, "losses": losses})
    assert len(losses) == 3
    assert torch.isfinite(torch.stack(losses)).all()


def test_every_link_leads_somewhere() -> None:
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_tree_names_every_room() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    (tree,) = re.findall(r"^```text\n(logitcache/\n.*?)^```$", page, re.DOTALL | re.MULTILINE)
    named = set(re.findall(r"^ {2}(\S+)", tree, re.MULTILINE))
    package = ROOT / "logitcache"
    rooms = {f"{path.name}/" for path in package.iterdir() if (path / "__init__.py").exists()}
    files = {path.name for path in package.glob("[a-z]*.py")}
    assert named == rooms | files
