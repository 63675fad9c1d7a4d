"""Fixtures that more than one room's tests use."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import galsim
import numpy as np
import pytest
from astropy.wcs import WCS

from astrozoo.data import root
from astrozoo.data.images import Field, Image
from astrozoo.data.psf import PixelPsf


@pytest.fixture(scope="session", autouse=True)
def _graphs_of_this_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Compiled graphs of a test run are its own: the user's cache is neither read nor written."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ASTROZOO_CACHE", str(tmp_path_factory.mktemp("graphs")))
        yield


_STAR, _GALAXY = (20.3, 41.7), (43.6, 22.4)  # (x, y) [px] in the reference band


@pytest.fixture(scope="session")
def data_root() -> Path:
    folder = root()
    if folder is None:
        pytest.skip("no survey data: set ASTROZOO_DATA, or put them at ../shared/data")
    return folder


@pytest.fixture(scope="session")
def sdss_folder(data_root: Path) -> Path:
    folder = data_root / "sdss" / "frame_2583_2_136"
    if not folder.is_dir():
        pytest.skip(f"no SDSS frames at {folder}")
    return folder


def make_wcs(x: float = 32.0, y: float = 32.0) -> WCS:
    """North up, east left, 0.396 arcsec per pixel; (150, 2) degrees lies at pixel (x, y)."""
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval = [150.0, 2.0]
    wcs.wcs.crpix = [x + 1, y + 1]
    wcs.wcs.cd = np.array([[-1.0, 0.0], [0.0, 1.0]]) * 0.396 / 3600
    return wcs


def make_image(
    band: str,
    sources: list[tuple[galsim.GSObject, float, float]],
    *,
    shift: tuple[float, float] = (0.0, 0.0),
    shape: tuple[int, int] = (64, 64),
    sky: float = 700.0,
    calibration: float = 850.0,
    seed: int = 0,
) -> Image:
    """A noisy image of (profile in nanomaggies and pixels, x, y), all moved by ``shift`` [px]."""
    psf = galsim.Moffat(beta=3.5, fwhm=3.0)
    canvas = galsim.ImageD(galsim.BoundsI(0, shape[1] - 1, 0, shape[0] - 1), scale=1.0)
    for profile, x, y in sources:
        centre = galsim.PositionD(x + shift[0], y + shift[1])
        galsim.Convolve(profile, psf).drawImage(canvas, center=centre, add_to_image=True)
    stamp = psf.drawImage(nx=31, ny=31, scale=1.0).array.astype(float)
    expected = np.maximum(canvas.array, 0) * calibration + sky
    return Image(
        band=band,
        counts=np.random.default_rng(seed).poisson(expected).astype(float),
        sky=np.full(shape, sky),
        calibration=np.full(shape, calibration),
        valid=np.ones(shape, bool),
        saturated=np.zeros(shape, bool),
        wcs=make_wcs(32.0 + shift[0], 32.0 + shift[1]),
        psf=PixelPsf(stamp),
        name=f"simulated-{band}",
    )


@pytest.fixture(scope="session")
def simulated_field() -> Field:
    """64x64 pixels in g and r, offset by (2.4, -1.3) pixels: a star of 30 nMgy, a galaxy of 50 nMgy (in r).

    ``meta`` holds their positions in r: ``star`` and ``galaxy``, as "x y" [px].
    """
    images = []
    for seed, (band, star, galaxy, shift) in enumerate((("r", 30, 50, (0, 0)), ("g", 20, 25, (2.4, -1.3)))):
        disc = galsim.Exponential(half_light_radius=4.0, flux=galaxy).shear(q=0.6, beta=0.7 * galsim.radians)
        sources = [(galsim.DeltaFunction(flux=star), *_STAR), (disc, *_GALAXY)]
        images.append(make_image(band, sources, shift=shift, seed=seed))
    meta = {"star": "{} {}".format(*_STAR), "galaxy": "{} {}".format(*_GALAXY)}
    return Field(tuple(images), name="simulated", meta=meta)
