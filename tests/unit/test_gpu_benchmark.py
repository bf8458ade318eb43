"""`benchmarks/gpu.py` runs the training loop on a machine that has little more than torch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# What `pip install torch numpy pyarrow safetensors pydantic` brings, as far as it is needed.
BARE = {
    *("torch", "torchgen", "functorch", "typing_extensions"),
    *("numpy", "pyarrow", "safetensors"),
    *("pydantic", "pydantic_core", "annotated_types", "typing_inspection"),
}

ON_A_BARE_MACHINE = """
import importlib, importlib.abc, pkgutil, runpy, sys

class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        top = name.partition(".")[0]
        known = {"orchestrator", *allowed, *sys.stdlib_module_names}
        if top not in known and not top.startswith("_sysconfigdata"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

root, *allowed = sys.argv[1:]
sys.meta_path.insert(0, Absent())
sys.path.insert(0, root)
import orchestrator.learn
assert orchestrator.__file__.startswith(root)
for module in pkgutil.iter_modules(orchestrator.learn.__path__):
    importlib.import_module(f"orchestrator.learn.{module.name}")
sys.argv = ["gpu.py", "--device", "cpu", "--shape", "tiny", "--steps", "4"]
runpy.run_path(f"{root}/benchmarks/gpu.py", run_name="__main__")
"""


def test_it_runs_where_nothing_but_torch_and_four_libraries_is_installed(tmp_path: Path) -> None:
    # As many threads as this test may count on: more would wait for one another.
    done = subprocess.run(
        [sys.executable, "-P", "-c", ON_A_BARE_MACHINE, str(ROOT), *BARE],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["shape"] == "tiny" and result["steps"] == 4 and not result["compiled"]
    assert result["flops_per_token"] == 6 * result["parameters"] + 12 * 2 * 64 * 32
    flops = result["tokens_per_second"] * result["flops_per_token"]
    assert result["mfu"] == pytest.approx(flops / result["peak_tflops"] / 1e12)
    assert result["tokens_per_second"] * result["step_seconds"] == pytest.approx(8 * 32)
    losses = result["losses"]
    assert len(losses["bf16"]) == len(losses["fp32"]) == 20
    assert losses["bf16"] != losses["fp32"]
    assert losses["fp32"][-1] < losses["fp32"][0] - 0.3
    assert 0 < result["largest_loss_gap"] < 0.02
