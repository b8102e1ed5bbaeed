"""docs/adding-a-loss.md, done as it says on a copy of the package."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_guide_adds_a_loss_of_twenty_lines(tmp_path: Path) -> None:
    guide = (ROOT / "docs" / "adding-a-loss.md").read_text()
    files = dict(re.findall(r"```python\n# (\S+)\n(.*?)```", guide, re.DOTALL))
    assert set(files) == {"logitcache/objectives/regress.py", "tests/objectives/test_regress.py"}
    code = files["logitcache/objectives/regress.py"].splitlines()
    assert len([line for line in code if line.strip()]) <= 20
    shutil.copytree(ROOT / "logitcache", tmp_path / "logitcache")
    (tmp_path / "tests/objectives").mkdir(parents=True)
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    field, entry = (
        found for found in re.findall(r"`([^`]+)`", guide.partition("**3.")[0].partition("**2.")[2])
        if "Regress" in found
    )  # fmt: skip
    combine = tmp_path / "logitcache/objectives/combine.py"
    edited = combine.read_text()
    for before, after in (
        ("    label: LabelConfig | None = None\n", f"    {field}\n"),
        ('    "label": Label,\n', f"    {entry},\n"),
        (
            "from logitcache.objectives.soft import",
            "from logitcache.objectives.regress import Regress, RegressConfig\n",
        ),
    ):
        assert edited.count(before) == 1
        joined = after + before if before.startswith("from") else before + after
        edited = edited.replace(before, joined)
    combine.write_text(edited)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path), "PYTEST_ADDOPTS": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 passed" in done.stdout
