from __future__ import annotations

import numpy as np
import pytest
import torch

import astrozoo
from astrozoo.errors import DataError, InputError
from astrozoo.models import denoise, two_moons


def test_the_density_is_that_of_the_points():
    axis = torch.linspace(-2, 3, 250, dtype=torch.float64)
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1)
    density = two_moons.density(grid) * (axis[1] - axis[0]) ** 2
    assert float(density.sum()) == pytest.approx(1, abs=1e-6)
    points = two_moons.draw(40_000, torch.Generator().manual_seed(0))
    for power in (1, 2, 3):
        exact = (density[..., None] * grid**power).sum((0, 1)).numpy()
        drawn = (points**power).numpy()
        error = drawn.std(0) / np.sqrt(len(drawn))
        assert (np.abs(drawn.mean(0) - exact) < 4.5 * error).all()


def test_the_learned_density_is_near_the_exact_one():
    axis = torch.linspace(-1.6, 2.6, 120, dtype=torch.float64)
    points = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1).flatten(0, 1)
    field = two_moons.base(points)
    energy = two_moons.load()
    level = points.new_full((len(points),), two_moons.LEVELS[0])
    centred = points - field.mean
    log_learned = -energy(centred[..., None, None], level) - (centred / field.root).square().sum(-1) / 2
    learned = log_learned.softmax(0)
    width = float(np.hypot(two_moons.WIDTH, two_moons.LEVELS[0]))
    exact = two_moons.density(points, width)
    exact = exact / exact.sum()
    distance = float((learned - exact).abs().sum() / 2)  # total variation
    assert distance < 0.08


def test_points_are_read_and_bad_ones_refused(tmp_path):
    np.savez(tmp_path / "points.npz", points=np.zeros((3, 2)), noise=0.3)
    data = denoise.read(tmp_path / "points.npz")
    assert data.points
    assert float(data.pixels.noise[2, 1]) == 0.3
    problem = denoise.problem(data, prior="two_moons")
    assert problem.dims["image"] == ("point", "coordinate")
    with pytest.raises(InputError, match=r"prior: got gaussian.*the data are points"):
        denoise.problem(data)
    with pytest.raises(InputError, match="slope: got 2"):
        denoise.problem(data, prior="two_moons", slope=2.0)
    with pytest.raises(InputError, match="fourier, expected mean_field for points"):
        astrozoo.infer(problem, "svi", "fourier", progress=False)
    np.savez(tmp_path / "bare.npz", points=np.zeros((3, 2)))
    with pytest.raises(InputError, match="noise"):
        denoise.read(tmp_path / "bare.npz")
    with pytest.raises(InputError, match="noise"):
        denoise.read(tmp_path / "bare.npz", noise=-1.0)
    np.savez(tmp_path / "bad.npz", points=np.zeros((3, 3)))
    with pytest.raises(DataError, match=r"shape \(3, 3\)"):
        denoise.read(tmp_path / "bad.npz", noise=1)
