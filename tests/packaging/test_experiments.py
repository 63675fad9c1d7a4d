"""Experiments and benchmarks are not run by the tests, but they are kept able to start."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

_ROOT = Path(__file__).parents[2]
_OPTIONAL = {
    "experiments.bench.lens": "numpyro",
    "experiments.bench.infer": "numpyro",
    "experiments.make_kappa_spectrum": "camb",
}

_IMPORT = """
import importlib, sys
sys.path[:0] = [".", "experiments"]
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except Exception as error:
        print(f"{name}: {error!r}")
"""


def test_every_experiment_can_be_imported() -> None:
    files = [file.relative_to(_ROOT) for file in sorted((_ROOT / "experiments").rglob("*.py"))]
    names = [".".join(file.with_suffix("").parts) for file in files]
    assert "experiments.bench.celeste" in names
    able = [n for n in names if n not in _OPTIONAL or importlib.util.find_spec(_OPTIONAL[n])]
    command = [sys.executable, "-W", "ignore", "-c", _IMPORT, *able]
    found = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True)
    assert (found.returncode, found.stdout) == (0, ""), found.stdout + found.stderr
