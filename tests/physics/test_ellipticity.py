import galsim
import numpy as np
import pytest
import torch

from astrozoo.physics.ellipticity import profile_transform, quadratic_form, to_ellipticity, to_eta, unshear


def _vectors(n: int, scale: float) -> torch.Tensor:
    return scale * torch.randn(n, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_unshear_is_the_inverse_of_galsims_sum_of_shears() -> None:
    shear = torch.tensor([0.1, -0.2], dtype=torch.float64)
    for eta in _vectors(20, 0.7):
        intrinsic = to_ellipticity(unshear(eta, shear)[0]).tolist()
        seen = galsim.Shear(g1=0.1, g2=-0.2) + galsim.Shear(g1=intrinsic[0], g2=intrinsic[1])
        assert [seen.g1, seen.g2] == pytest.approx(to_ellipticity(eta).tolist(), abs=1e-6)


def test_jacobian_is_that_of_automatic_differentiation() -> None:
    shear = torch.tensor([0.05, 0.3], dtype=torch.float64)
    for eta in [torch.zeros(2, dtype=torch.float64), *_vectors(10, 0.8)]:
        matrix = torch.autograd.functional.jacobian(lambda e: unshear(e, shear)[0], eta)
        expected = torch.linalg.slogdet(matrix)[1]
        assert unshear(eta, shear)[1].item() == pytest.approx(expected.item(), abs=1e-5)


def test_opposite_shears_cancel_and_zero_changes_nothing() -> None:
    eta, shear = _vectors(10, 0.8), torch.tensor([0.2, 0.1], dtype=torch.float64)
    there, forward = unshear(eta, shear)
    back, backward = unshear(there, -shear)
    torch.testing.assert_close(back, eta, atol=1e-5, rtol=0)
    torch.testing.assert_close(forward, -backward, atol=1e-5, rtol=0)
    torch.testing.assert_close(unshear(eta, 0 * shear)[0], eta, atol=1e-6, rtol=0)
    torch.testing.assert_close(to_eta(to_ellipticity(eta)), eta, atol=1e-5, rtol=0)


@pytest.mark.parametrize("index", [0.5, 1.0])
def test_transform_of_a_sheared_profile_is_galsims(index: float) -> None:
    eta = torch.tensor([0.4, -0.3], dtype=torch.float64)
    g1, g2 = to_ellipticity(eta).tolist()
    profile = galsim.Sersic(index, half_light_radius=0.6).shear(g1=g1, g2=g2)
    k = 3 * _vectors(12, 1.0)
    ours = profile_transform(0.6**2 * quadratic_form(k[:, 0], k[:, 1], eta), index)
    expected = [profile.kValue(*row).real for row in k.tolist()]
    np.testing.assert_allclose(ours.numpy(), expected, atol=2e-6)
