"""Models of the zoo, and every method, give on several processes what they give on one."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

_HERE = Path(__file__).parent
sys.path.insert(0, str(_HERE))

from launch import launched  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.mpi]

_CHAINS = ("hmc", "mclmc", "auto", "nuts", "nutpie")
_OTHERS = ("trust_region", "svi", "laplace", "el2o", "wiener")


@pytest.fixture(scope="module", params=[("torch", (2, 3)), ("mpi", (2,))], ids=str)
def found(request, tmp_path_factory):
    """Differences by number of processes; for a refused run, the message."""
    launcher, sizes = request.param
    file = tmp_path_factory.mktemp("found") / "found.json"
    starter = "alone" if launcher == "torch" else launcher
    program = (str(_HERE / "zoo_worker.py"), launcher, str(file), *map(str, sizes))
    ended = launched(starter, max(sizes), *program, timeout=900)
    assert ended.returncode == 0, ended.stderr[-3000:]
    return json.loads(file.read_text()).values()


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
