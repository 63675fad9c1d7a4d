"""Results of several processes, of torchrun and of mpiexec, are those of one."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

_HERE = Path(__file__).parent
sys.path.insert(0, str(_HERE))

from launch import GROUPS, LAUNCHERS, outcomes  # noqa: E402

pytestmark = pytest.mark.mpi


_ALL = [pytest.param((launcher, (1, 2, 3, 4)), marks=pytest.mark.slow) for launcher in LAUNCHERS]


@pytest.fixture(scope="module", params=[*GROUPS, *_ALL], ids=str)
def found(request, tmp_path_factory):
    """What groups of processes found, by their number."""
    launcher, sizes = request.param
    return outcomes("worker.py", launcher, sizes, tmp_path_factory.mktemp("found"), timeout=120)


def test_operations_do_what_they_say(found):
    for size, results in found.items():
        assert all(results["operations"].values()), (size, results["operations"])


def test_values_gradients_and_products_are_those_of_one_process(found):
    """Uneven shards (7 points), empty ones (2 points), rows fewer than ranks, and batches are among them."""
    for size, results in found.items():
        differences = results["evaluations"]
        assert len(differences) == 49
        assert {name: x for name, x in differences.items() if not x < 1e-10} == {}, size
