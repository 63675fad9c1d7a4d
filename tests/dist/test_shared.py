"""Results of several processes, of torchrun and of mpiexec, are those of one."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

_HERE = Path(__file__).parent
sys.path.insert(0, str(_HERE))

from launch import LAUNCHERS, launched  # noqa: E402

pytestmark = pytest.mark.mpi


_SIZES = (("torch", (2, 4)), ("mpi", (2,)))
_ALL = [pytest.param((launcher, (1, 2, 3, 4)), marks=pytest.mark.slow) for launcher in LAUNCHERS]


@pytest.fixture(scope="module", params=[*_SIZES, *_ALL], ids=str)
def found(request, tmp_path_factory):
    """What groups of processes found, by their number."""
    launcher, sizes = request.param
    file = tmp_path_factory.mktemp("found") / "found.json"
    starter = "alone" if launcher == "torch" else launcher
    program = (str(_HERE / "worker.py"), launcher, str(file), *map(str, sizes))
    ended = launched(starter, max(sizes), *program, timeout=120)
    assert ended.returncode == 0, ended.stderr[-3000:]
    results = json.loads(file.read_text())
    assert sorted(map(int, results)) == list(sizes)
    return results


def test_operations_do_what_they_say(found):
    for size, results in found.items():
        assert all(results["operations"].values()), (size, results["operations"])


def test_values_gradients_and_products_are_those_of_one_process(found):
    """Uneven shards (7 points), empty ones (2 points), rows fewer than ranks, and batches are among them."""
    for size, results in found.items():
        differences = results["evaluations"]
        assert len(differences) == 49
        assert {name: x for name, x in differences.items() if not x < 1e-10} == {}, size
