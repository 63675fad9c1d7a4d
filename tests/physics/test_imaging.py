"""Pixel grids, PSFs and likelihoods against their definitions; the GIGA-Lens demo at its truth."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.signal
import scipy.stats
import torch

from astrozoo.physics import imaging, lensing, light

F64 = torch.float64


def f64(*values):
    return torch.tensor(values[0] if len(values) == 1 else values, dtype=F64)


def test_a_grid_is_centred_and_its_parts_are_means_of_the_pixel():
    x, y = imaging.pixel_grid((2, 3), f64(0.1))
    torch.testing.assert_close(x[0], f64(-0.1, 0.0, 0.1))
    torch.testing.assert_close(y[:, 0], f64(-0.05, 0.05))
    fine = imaging.pixel_grid((2, 3), f64(0.1), supersample=3)
    for whole, parts in zip((x, y), fine, strict=True):
        assert parts.shape == (6, 9)
        torch.testing.assert_close(imaging.downsample(parts, 3), whole)


@pytest.mark.parametrize(("shape", "side"), [((12, 15), 5), ((7, 7), 7), ((60, 61), 13)])
def test_convolution_is_the_direct_sum(shape, side):
    g = torch.Generator().manual_seed(0)
    image, psf = (torch.rand(*s, generator=g, dtype=F64) for s in (shape, (side, side)))
    want = scipy.signal.convolve2d(image.numpy(), psf.numpy(), mode="same")
    torch.testing.assert_close(imaging.convolve(image, psf), torch.as_tensor(want), rtol=1e-12, atol=1e-12)
    two = imaging.convolve(torch.stack((image, 2 * image)), psf)
    torch.testing.assert_close(two[1], 2 * two[0], rtol=1e-12, atol=1e-12)


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # of torch's forward mode
def test_convolution_differentiates():
    g = torch.Generator().manual_seed(0)
    image, psf = (torch.rand(*n, generator=g, dtype=F64).requires_grad_() for n in ((2, 6, 5), (3, 3)))
    assert torch.autograd.gradcheck(imaging.convolve, (image, psf), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(imaging.convolve, (image, psf))


def test_likelihoods_are_those_of_scipy_and_leave_out_what_is_masked():
    model, image = f64([[3.0, 5.0], [0.5, 2.0]]), f64([[2.0, 6.0], [1.0, 0.0]])
    mask = torch.tensor([[True, False], [True, True]])
    variance = imaging.noise_variance(model - 1, f64(0.2), f64(10.0))
    np.testing.assert_allclose(variance, 0.04 + np.maximum(model.numpy() - 1, 0) / 10, rtol=1e-14)
    each = scipy.stats.norm.logpdf(image.numpy(), model.numpy(), variance.sqrt().numpy())
    got = imaging.gaussian_log_likelihood(image, model, variance, mask)
    assert float(got) == pytest.approx(each[mask.numpy()].sum(), rel=1e-12)
    each = scipy.stats.poisson.logpmf(image.numpy(), model.numpy())
    assert float(imaging.poisson_log_likelihood(image, model, mask)) == pytest.approx(
        each[mask.numpy()].sum(), rel=1e-12
    )
    assert float(imaging.poisson_log_likelihood(image, model)) == pytest.approx(each.sum(), rel=1e-12)


@pytest.mark.parametrize(("supersample", "expected"), [(1, 0.99887), (2, 0.99618)])
def test_the_gigalens_demo_at_its_truth(data_root, supersample, expected):
    """Figures of two other codes, given to five decimals. The demo's PSF is at the scale of whole pixels."""
    folder = data_root / "strong_lens" / "gigalens_demo"
    if not folder.is_dir():
        pytest.skip(f"no GIGA-Lens demo at {folder}")
    image, psf = (torch.as_tensor(np.load(folder / f"{name}.npy").astype(float)) for name in ("demo", "psf"))
    x, y = imaging.pixel_grid((60, 60), f64(0.065), supersample)
    ax, ay = lensing.epl(x, y, f64(1.1), f64(2.0), f64(0.1, 0.1), f64(0.1, 0.0))
    gx, gy = lensing.shear(x, y, f64(-0.01, 0.03))
    lens = light.sersic(
        x, y, f64(499.3695906504), f64(0.8), f64(2.5), f64(0.09534746574, 0.14849487967), f64(0.1, 0.0)
    )
    centre = f64(0.095666810022, -0.063962305427)
    source = light.sersic(
        x - ax - gx, y - ay - gy, f64(149.5882887709), f64(0.25), f64(1.5), f64(0.0, 0.0), centre
    )
    pixels = imaging.downsample(lens + source, supersample) * 0.065**2
    model = imaging.convolve(pixels, psf)
    variance = imaging.noise_variance(model, f64(0.2), f64(100.0))
    assert float(((image - model) ** 2 / variance).mean()) == pytest.approx(expected, abs=1e-5)
