import numpy as np
import pytest
from scipy.optimize import nnls
from scipy.sparse import csc_array

from astrozoo.errors import InputError
from astrozoo.survey.crowded.linear import nonnegative_fluxes, nonnegative_least_squares
from astrozoo.survey.crowded.scene import Scene


@pytest.mark.parametrize("seed", range(5))
def test_non_negative_least_squares_is_that_of_scipy(seed):
    rng = np.random.default_rng(seed)
    design = rng.normal(size=(60, 25)) * np.exp(rng.normal(size=25))
    target = design @ rng.normal(size=25) + rng.normal(size=60)
    answer = nonnegative_least_squares(csc_array(design.T @ design), design.T @ target)
    reference, _ = nnls(design, target)
    assert (reference == 0).any()
    np.testing.assert_allclose(answer, reference, rtol=1e-5, atol=1e-7)


def test_free_variables_may_be_negative():
    matrix, right = csc_array(np.array([[2.0, 1.0], [1.0, 2.0]])), np.array([-1.0, -3.0])
    answer = nonnegative_least_squares(matrix, right, np.array([False, True]))
    np.testing.assert_allclose(answer, [1 / 3 if answer[0] else 0, (right[1] - answer[0]) / 2], rtol=1e-6)
    np.testing.assert_allclose(matrix @ answer, right, rtol=1e-6)


def test_fluxes_of_a_blend_are_recovered_together(field_of):
    xy = np.array([[18.0, 20.0], [19.6, 20.3], [20.4, 21.9], [30.0, 9.0]])
    flux = np.array([[10.0, 40.0], [30.0, 8.0], [2.0, 15.0], [5.0, 5.0]])
    scene = Scene.of(field_of(xy, flux, seed=None))
    np.testing.assert_allclose(nonnegative_fluxes(scene, xy), flux, rtol=0.03, atol=0.15)


def test_a_source_that_is_not_there_gets_no_flux(field_of):
    xy, flux = np.array([[18.0, 20.0]]), np.array([[20.0, 20.0]])
    scene = Scene.of(field_of(xy, flux, seed=1))
    more = np.vstack([xy, [[21.0, 20.0], [18.0, 24.0], [300.0, 300.0]]])
    fitted = nonnegative_fluxes(scene, more)
    assert (fitted >= 0).all()
    assert fitted[0] == pytest.approx(flux[0], rel=0.05)
    assert (fitted[1:] < 0.5).all()
    assert (fitted[3] == 0).all()


def test_galaxies_have_fluxes_too(scene, truth):
    xy, flux = truth
    shape = np.full((len(xy), 3), np.nan)
    shape[0] = (1e-3, 0.0, 0.0)  # a galaxy far smaller than the PSF
    fitted = nonnegative_fluxes(scene, xy, shape)
    np.testing.assert_allclose(fitted[0], flux[0], rtol=0.1, atol=0.5)


def test_positions_must_be_finite(scene):
    with pytest.raises(InputError, match="positions of sources"):
        nonnegative_fluxes(scene, np.array([[np.nan, 1.0]]))
