"""Models of the zoo, and every method, give on several processes what they give on one."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

_HERE = Path(__file__).parent
sys.path.insert(0, str(_HERE))

from launch import outcomes  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.mpi]

_CHAINS = ("hmc", "mclmc", "auto", "nuts", "nutpie")
_OTHERS = ("trust_region", "svi", "laplace", "el2o", "wiener")


@pytest.fixture(scope="module", params=[("torch", (2, 3)), ("mpi", (2,))], ids=str)
def found(request, tmp_path_factory):
    """Differences by number of processes; for a refused run, the message."""
    launcher, sizes = request.param
    return outcomes("zoo_worker.py", launcher, sizes, tmp_path_factory.mktemp("found"), timeout=900).values()


def test_evaluations_of_the_zoo(found):
    for results in found:
        assert len(results["zoo"]) == 16
        assert {name: x for name, x in results["zoo"].items() if not x < 1e-10} == {}


def test_draws_of_every_method(found):
    """Rounding grows along a chain: data that are divided are summed in another order."""
    for results in found:
        runs = results["methods"]
        assert len(runs) == 3 * len(_CHAINS + _OTHERS)
        for method in _CHAINS + _OTHERS:
            assert runs[f"{method}, problems"] < 1e-12
            assert runs[f"{method}, data"] < 1e-6
        for method in _CHAINS:
            assert runs[f"{method}, chains"] < 1e-12
        for method in _OTHERS:
            assert "expected one with Markov chains" in runs[f"{method}, chains"]
