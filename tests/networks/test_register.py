from __future__ import annotations

import subprocess
import sys

import pytest

CHECK = """
import sys
assert timm.is_model("rednet50") and timm.is_model("civt_tiny_patch16_224")
assert timm.create_model("rednet26_small", num_classes=3).num_classes == 3
assert not any("logitcache.networks" in type(finder).__module__ for finder in sys.meta_path)
assert "logitcache" not in type(timm.__spec__.loader).__module__
"""


@pytest.mark.parametrize(
    "imports",
    ["import logitcache, timm", "import timm, logitcache", "import logitcache, timm.data, timm"],
)
def test_importing_the_package_registers_its_models_with_timm(imports: str) -> None:
    command = [sys.executable, "-W", "error", "-c", imports + CHECK]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_importing_the_package_loads_no_heavy_library() -> None:
    heavy = ["torch", "timm", "numpy", "zarr", "dask", "pydantic", "scipy"]
    code = f"import logitcache, sys; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
