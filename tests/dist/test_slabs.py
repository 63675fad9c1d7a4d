"""Fields and N-body simulations that are cut in slabs equal those of one process."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
import torch

from astrozoo.dist import Alone
from astrozoo.dist.particle_mesh import ParticleMesh
from astrozoo.errors import InputError

_HERE = Path(__file__).parent
sys.path.insert(0, str(_HERE))

from launch import GROUPS, LAUNCHERS, outcomes  # noqa: E402

_ALL = [pytest.param((launcher, (1, 2, 3, 4)), marks=pytest.mark.slow) for launcher in LAUNCHERS]


@pytest.fixture(scope="module", params=[*GROUPS, *_ALL], ids=str)
def found(request, tmp_path_factory):
    """Differences by number of ranks and by what was computed."""
    launcher, sizes = request.param
    return outcomes("slab_worker.py", launcher, sizes, tmp_path_factory.mktemp("found"), timeout=300)


def _worst(differences, *names):
    chosen = {name: x for name, x in differences.items() if name.endswith(names)}
    assert chosen
    return max(chosen.values(), key=lambda x: math.inf if math.isnan(x) else x)


@pytest.mark.mpi
def test_transforms_and_filters_with_their_gradients(found):
    """Slabs of equal and of different size; relative to the largest number of a field."""
    for differences in found.values():
        assert len(differences) == 72
        fields = (" transform", "gradient through transforms", " filter", "gradient of filter")
        assert _worst(differences, *fields) < 1e-13


@pytest.mark.mpi
def test_simulations_with_their_gradients(found):
    """Particles that stay near and that cross several slabs; automatic differentiation and the adjoint."""
    for differences in found.values():
        assert _worst(differences, "density", "momentum", "value") < 1e-12
        assert _worst(differences, "gradient of the field", "gradient of the amplitude") < 1e-10


@pytest.mark.parametrize("value", [math.nan, 9.0])
def test_particles_that_left_are_an_error(value):
    mesh = ParticleMesh(Alone(), (8, 8, 8))
    displacement = torch.zeros(3, 8, 8, 8, dtype=torch.float64)
    displacement[0, 1, 2, 3] = value
    with pytest.raises(InputError, match="got particles that are NaN or left the box"):
        mesh.paint(displacement)


def test_meshes_with_odd_sides_are_refused():
    with pytest.raises(InputError, match="expected three even sides of 4 cells or more"):
        ParticleMesh(Alone(), (8, 7, 8))
