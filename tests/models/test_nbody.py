from __future__ import annotations

import numpy as np
import pytest
import torch
from astropy.io import fits
from scipy.integrate import quad

import astrozoo
from astrozoo.density import log_density
from astrozoo.errors import DataError, InputError
from astrozoo.models import nbody
from astrozoo.models.nbody import NBody, make_box
from astrozoo.models.nbody_grid import read
from astrozoo.physics.cosmology import make_cosmology

F64 = torch.float64


def normal(mean, sd):
    return torch.distributions.Normal(mean, sd)


def unconstrained(density, truth):
    return torch.cat([site.transform.inv(truth[site.name]).flatten() for site in density.layout.sites])


@pytest.mark.parametrize("kind", ["counts", "density", "kappa"])
def test_the_density_is_that_of_its_parts(kind):
    data, truth = nbody.simulate(1, kind=kind, unseen=0.25)
    problem = nbody.problem(data)
    values, noise, mask, _ = data.cells
    box = problem.args[1]
    expected = problem.model.expected(truth["density"], data.cells, box, box.cosmology)
    likelihood = torch.distributions.Poisson(expected) if kind == "counts" else normal(expected, noise)
    by_hand = normal(0.0, 1.0).log_prob(truth["white"]).sum() + likelihood.log_prob(values)[mask].sum()
    density = log_density(problem, compile="never")
    assert float(density.values(unconstrained(density, truth)[None])) == pytest.approx(float(by_hand))
    assert float(truth["density"].mean()) == pytest.approx(1)


def test_the_gradient_in_the_cosmology_is_that_of_finite_differences():
    data, truth = nbody.simulate(2, free=True)
    density = log_density(nbody.problem(data, free=True), compile="never")
    names = [site.name for site in density.layout.sites]
    assert names == ["white", "omega_m", "sigma8"]
    z = unconstrained(density, truth)
    _, gradient = density.value_and_grad(z[None])
    for i in (-1, -2):
        step = torch.zeros_like(z)
        step[i] = 1e-5
        up, down = density.values(torch.stack((z + step, z - step)))
        assert float(gradient[0, i]) == pytest.approx(float((up - down) / 2e-5), rel=1e-4)


def test_single_precision_gives_the_density_of_double():
    data, truth = nbody.simulate(0)
    problem = nbody.problem(data)
    double, single = (log_density(p, compile="never") for p in (problem, problem.to(dtype=torch.float32)))
    z = unconstrained(double, truth)
    assert float(single.values(z.float()[None])) == pytest.approx(float(double.values(z[None])), abs=0.01)


def test_empty_cells_of_biased_galaxies_have_a_positive_rate():
    data, _ = nbody.simulate(0, bias=2.0)
    box = make_box(data.shape, data.box)
    model = NBody("counts", 2.0)
    rates = model.expected(torch.tensor([0.0, 1.0, 3.0], dtype=F64), data.cells, box, box.cosmology)
    assert (rates > 0).all()
    torch.testing.assert_close(
        rates[1:] / data.cells.mean, torch.tensor([1.0, 5.0], dtype=F64), rtol=3e-3, atol=0
    )


def test_the_convergence_of_a_layer_is_that_of_the_born_formula():
    cosmology = make_cosmology()
    box = make_box((4, 4, 8), 400.0, steps=0, redshift=0.4, cosmology=cosmology, source_redshift=1.2)
    found = nbody.lensing_weights(8, box, cosmology)
    matter = float(cosmology.omega_m)

    def distance(z):
        return 2997.92458 * quad(lambda x: (matter * (1 + x) ** 3 + 1 - matter) ** -0.5, 0, z)[0]

    layers = distance(0.4) + (np.arange(8) - 3.5) * 100.0
    expected = (
        1.5 * float(cosmology.omega_m) / 2997.92458**2 * layers * (1 - layers / distance(1.2)) * 1.4 * 100
    )
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9)


def test_hmc_recovers_the_initial_conditions_of_a_small_box():
    data, truth = nbody.simulate(3, mean=20.0, steps=1)
    problem = nbody.problem(data, steps=1)
    options = {"compile": "never", "progress": False, "seed": 0, "keep": ["linear"]}
    result = astrozoo.infer(problem, "hmc", chains=4, draws=40, warmup=50, **options)
    draws = torch.as_tensor(result.draws["linear"]).flatten(0, 1)
    z = (truth["linear"] - draws.mean(0)) / draws.std(0)
    assert float(z.square().mean().sqrt()) == pytest.approx(1, abs=0.15)
    mean = draws.mean(0)
    assert np.corrcoef(mean.flatten(), truth["linear"].flatten())[0, 1] > 0.6


# Reading


def test_grids_are_read_from_npz_and_fits(tmp_path):
    counts = np.random.default_rng(0).poisson(2.0, (4, 6, 8))
    np.savez(tmp_path / "g.npz", counts=counts, box=40.0, mask=np.arange(8) > 1 + np.zeros_like(counts))
    data = read(tmp_path / "g.npz")
    assert data.shape == (4, 6, 8)
    assert data.kind == "counts"
    assert int(data.cells.mask.sum()) == 4 * 6 * 6
    assert float(data.cells.mean) == pytest.approx(counts[..., 2:].mean())
    assert (data.cells.values[..., :2] == 0).all()
    assert nbody.problem(data).args[1].modes.cell == 10

    contrast = np.random.default_rng(1).normal(size=(4, 4, 4))
    contrast[0, 0, 0] = np.nan
    fits.PrimaryHDU(contrast).writeto(tmp_path / "d.fits")
    data = read(tmp_path / "d.fits", kind="density", box=64.0, noise=0.4)
    assert not data.cells.mask[0, 0, 0]
    assert float(data.cells.noise[1, 1, 1]) == 0.4
    np.save(tmp_path / "mask.npy", np.isfinite(contrast))
    masked = read(tmp_path / "d.fits", kind="density", box=64.0, noise=0.4, mask_grid=tmp_path / "mask.npy")
    assert torch.equal(masked.cells.mask, data.cells.mask)
    np.savez(tmp_path / "k.npz", kappa=np.zeros((4, 4)), noise=np.full((4, 4), 0.01))
    assert read(tmp_path / "k.npz", box=64.0, depth=6).shape == (4, 4, 6)


def test_bad_grids_are_refused(tmp_path):
    good = np.ones((4, 4, 4))

    def saved(**arrays):
        np.savez(tmp_path / "x.npz", **arrays)
        return tmp_path / "x.npz"

    with pytest.raises(InputError, match=r"box: got none, expected the length"):
        read(saved(counts=good))
    with pytest.raises(DataError, match=r"arrays galaxies, expected one array of counts, density, kappa"):
        read(saved(galaxies=good))
    with pytest.raises(DataError, match=r"shape \(4, 4\).*counts: numbers with 3 axes"):
        read(saved(counts=good[0]))
    with pytest.raises(InputError, match=r"mesh: got \(4, 4, 5\), expected three even sides"):
        read(saved(counts=np.ones((4, 4, 5))), box=10.0)
    with pytest.raises(InputError, match=r"values below 0 or between integers, expected numbers of galaxies"):
        read(saved(counts=good / 2), box=10.0)
    with pytest.raises(InputError, match=r"noise: got None"):
        read(saved(density=good), box=10.0)
    with pytest.raises(InputError, match=r"mask: got shape \(4, 4, 4\) with 0 cells"):
        read(saved(counts=good, mask=0 * good), box=10.0)
    nan = good.copy()
    nan[0, 0, 0] = np.nan
    with pytest.raises(InputError, match=r"1 values NaN or infinite where there are data"):
        read(saved(density=nan, mask=good), box=10.0, noise=1.0)
    (tmp_path / "x.npz").write_bytes(b"no archive")
    with pytest.raises(DataError, match="expected a complete NPZ file"):
        read(tmp_path / "x.npz")


def test_boxes_and_spectra_that_do_not_fit_are_refused(tmp_path):
    data, _ = nbody.simulate(0)
    path = tmp_path / "pk.txt"
    k = np.logspace(-3, 1, 50)
    with pytest.raises(InputError, match=r"cells of 8e\+03 Mpc/h, expected its length in Mpc/h"):
        make_box((8, 8, 8), 64000.0)
    np.savetxt(path, np.stack((k[35:], 1e4 * k[35:] ** -1.5), 1))
    with pytest.raises(InputError, match=r"spectrum: got wave numbers .* expected those of the box"):
        nbody.problem(data, spectrum=path)
    np.savetxt(path, np.stack((k, 0.1 * k), 1))
    with pytest.raises(InputError, match=r"spectrum: got powers up to 1, expected P\(k\) today in"):
        nbody.problem(data, spectrum=path)
    with pytest.raises(InputError, match=r"free: got with sigma8, expected it without"):
        nbody.problem(data, free=True, sigma8=0.8)
    with pytest.raises(InputError, match=r"redshift: got 12, expected less than 9"):
        nbody.problem(data, redshift=12)
    with pytest.raises(InputError, match=r"redshift: .* expected one between here and the sources"):
        nbody.simulate(0, kind="kappa", redshift=0.0)
    with pytest.raises(InputError, match="particles that are NaN or left the box"):
        nbody.simulate(0, steps=2, spectrum=_runaway(path))


def _runaway(path):
    """A spectrum so high that particles leave."""
    k = np.logspace(-3, 1, 20)
    np.savetxt(path, np.stack((k, np.full_like(k, 1e9)), 1))
    return path
