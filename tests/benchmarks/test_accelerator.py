from __future__ import annotations

import json

import pytest
import torch

from tests.benchmarks import accelerator


def test_everything_is_measured_in_small_on_a_processor(
    capsys: pytest.CaptureFixture[str],
) -> None:
    accelerator.main(["--smoke", "--json"])
    found = json.loads(capsys.readouterr().out)
    rows = {row["name"]: row for row in found["rows"]}
    assert f"torch {torch.__version__}" in found["machine"]
    assert not [name for name in rows if "left out" in name]
    assert rows["failures of tests/accelerator"]["value"] == 0
    assert "tests collected" in rows["failures of tests/accelerator"]["note"]
    for kind in accelerator.TARGETS:
        assert rows[f"student step, {kind}: to the device"]["value"] >= 3 * 32 * 32
    assert [row["unit"] for row in found["rows"]].count("x") == 3
    assert all(row["value"] > 0 for row in found["rows"] if row["unit"] != "tests")
    # 50 class ids of 8 bytes and log-probabilities of 4, a tail of two, row number, label and its
    # log-probability
    sparse = rows["student step, sparse, K = 50: to the device"]["value"]
    assert sparse == 3 * 32 * 32 + 50 * 12 + 8 + 16 + 4


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_the_full_sizes_need_a_device(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        accelerator.main([])
    assert "--smoke" in capsys.readouterr().err
