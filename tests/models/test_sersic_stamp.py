import galsim
import numpy as np
import pytest
import torch

from astrozoo.models.sersic_stamp import StampModes, log_likelihood, render, stamp_modes
from astrozoo.physics.ellipticity import to_ellipticity

SCALE = 0.2
Z = torch.tensor(
    [[0.3, -0.4, -0.8, 1.2, 0.07, -0.12], [-0.2, 0.1, -1.0, 0.9, 0.0, 0.05]], dtype=torch.float64
)


def _psf(size: int) -> torch.Tensor:
    psf = galsim.Moffat(beta=3, fwhm=0.7).shear(g1=0.03, g2=0.0)
    stamp = psf.drawImage(nx=size, ny=size, scale=SCALE, dtype=float).array
    return torch.from_numpy(stamp / stamp.sum()).expand(2, -1, -1)


@pytest.mark.parametrize("size", [36, 37])
@pytest.mark.parametrize("index", [0.5, 1.0])
def test_stamps_are_galsims(size: int, index: float) -> None:
    psf = galsim.Moffat(beta=3, fwhm=0.7).shear(g1=0.03, g2=0.0)
    for z, image in zip(Z, render(Z, _psf(size), index, SCALE), strict=True):
        g1, g2 = to_ellipticity(z[:2]).tolist()
        galaxy = galsim.Sersic(index, half_light_radius=float(z[2].exp()), flux=float(z[3].exp()))
        scene = galsim.Convolve(galaxy.shear(g1=g1, g2=g2).shift(*z[4:].tolist()), psf)
        expected = scene.drawImage(nx=size, ny=size, scale=SCALE, dtype=float).array
        assert np.abs(image.numpy() - expected).max() < 1e-3 * expected.max()


@pytest.mark.parametrize("size", [36, 37])
def test_likelihood_of_modes_is_that_of_pixels(size: int) -> None:
    random = torch.Generator().manual_seed(2)
    psf, rms = _psf(size), torch.tensor([0.02, 0.03], dtype=torch.float64)
    noise = rms[:, None, None] * torch.randn(2, size, size, generator=random, dtype=torch.float64)
    image = render(Z, psf, 1.0, SCALE) + noise
    modes = stamp_modes(image, psf, rms, SCALE)
    ours, pixels = [], []
    for z in (Z, Z + 0.1):
        rows = [(StampModes(*(part[i] for part in modes)), row) for i, row in enumerate(z)]
        values = [log_likelihood(data, 1.0, row[:2], row[2], row[3], row[4:]) for data, row in rows]
        ours.append(torch.stack(values))
        chi = (image - render(z, psf, 1.0, SCALE)) / rms[:, None, None]
        pixels.append(-0.5 * chi.square().sum((1, 2)))
    difference, expected = ours[0] - ours[1], pixels[0] - pixels[1]
    # The modes that are left out contain less than a thousandth of the information.
    torch.testing.assert_close(difference, expected, rtol=3e-3, atol=0.05)
