from __future__ import annotations

import json
import subprocess

import pytest
import torch

from tests.benchmarks import accelerator


class Pytest:
    """Stands for the process that runs the tests: its start alone takes seconds."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, last: str, code: int) -> None:
        self.commands: list[list[str]] = []
        self._done = subprocess.CompletedProcess([], code, f"...\n{last}\n", "")
        monkeypatch.setattr(subprocess, "run", self._run)

    def _run(self, command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        assert options["timeout"] == accelerator.TESTS_SECONDS
        self.commands.append(command)
        return self._done


def test_everything_is_measured_in_small_on_a_processor(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    started = Pytest(monkeypatch, "36 tests collected in 1.12s", 0)
    accelerator.main(["--smoke", "--json"])
    found = json.loads(capsys.readouterr().out)
    rows = {row["name"]: row for row in found["rows"]}
    assert f"torch {torch.__version__}" in found["machine"]
    assert not [name for name in rows if "left out" in name]
    assert rows["failures of tests/accelerator"]["value"] == 0
    assert rows["failures of tests/accelerator"]["note"] == "36 tests collected in 1.12s"
    assert started.commands[0][-2:] == ["tests/accelerator", "--collect-only"]
    for kind in accelerator.TARGETS:
        assert rows[f"student step, {kind}: to the device"]["value"] >= 3 * 32 * 32
    assert [row["unit"] for row in found["rows"]].count("x") == 4
    assert all(row["value"] > 0 for row in found["rows"] if row["unit"] != "tests")
    # 50 class ids of 8 bytes and log-probabilities of 4, a tail of two, row number, label and its
    # log-probability
    sparse = rows["student step, sparse, K = 50: to the device"]["value"]
    assert sparse == 3 * 32 * 32 + 50 * 12 + 8 + 16 + 4


@pytest.mark.parametrize(
    ("last", "code", "failures"),
    [
        ("2 failed, 13 passed, 21 skipped in 9.01s", 1, 2),
        ("15 passed, 21 skipped in 9.01s", 0, 0),
        ("1 error in 0.40s", 2, 1),
        ("Killed", 137, 1),
    ],
)
def test_failures_of_the_tests_are_counted(
    monkeypatch: pytest.MonkeyPatch, last: str, code: int, failures: int
) -> None:
    Pytest(monkeypatch, last, code)
    (row,) = accelerator.tests(accelerator.FULL)
    assert (row.value, row.note, row.met) == (failures, last, failures == 0)


def test_sections_without_time_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accelerator, "SECONDS", -1)
    *left_out, whole = accelerator.measure(accelerator.SMOKE)
    assert [row.name for row in left_out] == [
        f"{name}: left out, no time" for name in accelerator.SECTIONS
    ]
    assert whole.unit == "s"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_the_full_sizes_need_a_device(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        accelerator.main([])
    assert "--smoke" in capsys.readouterr().err
