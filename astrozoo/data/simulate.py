"""Survey fields with known truth, drawn from the Celeste model's prior and rendered by GalSim.

Profiles are GalSim's and the PSF is not a sum of Gaussians: the images do not depend on the model's renderer.

Shapes follow :mod:`astrozoo.physics.profiles`: ``radius`` is the half-light radius of the circle of equal
area (semi-axes ``radius / sqrt(axis_ratio)`` and ``radius * sqrt(axis_ratio)``), ``angle`` the position angle
of the major axis, from north through east. A galaxy's flux is ``dev_fraction`` de Vaucouleurs and the rest
exponential. Both have the same shape, and neither is truncated. A table with a column ``sersic`` replaces
them by one Sersic profile of that index, where it is not NaN.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from typing import Any

import galsim
import numpy as np
from astropy import units
from astropy.table import Table, vstack
from astropy.wcs import WCS
from jaxtyping import Bool, Float

from astrozoo.data.images import Field, Image
from astrozoo.data.psf import PixelPsf
from astrozoo.errors import InputError

__all__ = ["draw_sources", "load_priors", "simulate_field", "with_holes"]

_SCALE = 0.396
"""[arcsec/px] Pixel scale of SDSS."""
_CENTRE = (10.0, 0.5)
"""[deg] (ra, dec) of a field's centre, in Stripe 82."""
_MOFFAT_BETA = 3.5
"""Exponent of the Moffat PSF."""
_STAMP = 65
"""[px] Side of the PSF stamps: that of the square in which a star is drawn. Both have the same light."""
_WING = 0.035
"""[1] Light in the power-law wing of the "survey" PSF, as of SDSS's stars (:mod:`astrozoo.data.psf`)."""
_WING_BETA = 1.6
"""[1] Exponent of that wing: psField's ``psf_beta`` is 3, which is twice that of a Moffat profile."""
_REACH = 32
"""[px] Half the side of the square in which a star is drawn."""
_EXTENT = 20.0
"""[semi-major axis] For a galaxy, this much is added to ``_REACH``: de Vaucouleurs profiles reach far."""
_BLEND = (2.0, 6.0)
"""[px] Range of the distance of a blended source from its partner."""
_TRIES = 2000
"""Greatest number of random positions that are tried for a source."""
_BATCHES = 200
"""Greatest number of batches that are drawn to get enough sources between two magnitudes."""


@dataclass(frozen=True)
class _Band:
    """Detector, sky and PSF of one band.

    Args:
        gain: electrons per nMgy.
        sky: electrons per pixel.
        read: read-noise variance [electrons^2 per pixel].
        fwhm: full width at half maximum of the PSF [arcsec].
        shear: (g1, g2) of the PSF.
        shift: of the array, relative to that of band r [px].
        rotation: added to the rotation of the field [deg].
    """

    gain: float
    sky: float
    read: float
    fwhm: float
    shear: tuple[float, float]
    shift: tuple[float, float]
    rotation: float


_SURVEY = {
    "u": _Band(157.0, 42.6, 42.0, 1.45, (0.03, -0.02), (5.2, 6.2), 0.02),
    "g": _Band(920.0, 312.0, 21.4, 1.35, (0.02, 0.02), (3.3, 11.2), -0.01),
    "r": _Band(856.0, 686.0, 21.2, 1.20, (-0.02, 0.01), (0.0, 0.0), 0.0),
    "i": _Band(685.0, 1123.0, 168.7, 1.12, (-0.01, -0.03), (-0.1, 3.1), 0.01),
    "z": _Band(136.0, 726.0, 26.6, 1.16, (0.01, 0.03), (1.4, 6.6), -0.02),
}
"""Gain, sky and read noise are medians of SDSS run 2583, camcol 2, field 136. The other values are of the
size seen in that field."""
_SHARP = {"u": 1.17, "g": 1.10, "r": 0.85, "i": 0.80, "z": 0.91}
"""[arcsec] FWHM of the atmosphere of the "survey" PSF, with which its areas are those of SDSS's PSF on M2."""
_FINE = 5
"""Cells per pixel of the table of the "survey" PSF."""
_PSFS = ("moffat", "kolmogorov", "survey")
_FIELD_ROTATION = 20.0
"""[deg] Position angle of the y axis."""


def load_priors(name: str = "stripe82") -> dict[str, Any]:
    """A prior of the Celeste model, ``models/celeste_priors_<name>.json``: "stripe82" or "regier2019".

    Raises:
        InputError: there is no prior of that name.
    """
    path = files("astrozoo").joinpath(f"models/celeste_priors_{name}.json")
    if not path.is_file():
        raise InputError("prior", repr(name), "'stripe82' or 'regier2019'")
    return json.loads(path.read_text())


def draw_sources(
    n: int,
    rng: np.random.Generator,
    *,
    priors: Mapping[str, Any] | None = None,
    r_range: tuple[float, float] | None = None,
) -> Table:
    """Types, fluxes and shapes of ``n`` sources from the prior, without positions.

    Args:
        n: number of sources.
        rng: source of randomness.
        priors: the result of :func:`load_priors`; by default its default.
        r_range: keep only sources between these r magnitudes; others are drawn again. Calibration tests need
            None, because with a range the truth no longer follows the prior.

    Returns:
        ``is_star``, ``flux_{band}`` [nMgy], ``dev_fraction``, ``radius`` [arcsec], ``axis_ratio``, ``angle``
        [deg, north through east]. Shapes of stars are NaN.

    Raises:
        InputError: almost none of the prior's sources are in the magnitude range.
    """
    priors = load_priors() if priors is None else priors
    parts: list[Table] = []
    for _ in range(_BATCHES):
        part = _draw(max(n, 500), rng, priors)
        if r_range is not None:
            r_mag = 22.5 - 2.5 * np.log10(part["flux_r"])
            part = part[(r_mag > r_range[0]) & (r_mag < r_range[1])]
        parts.append(part)
        if sum(map(len, parts)) >= n:
            break
    else:
        raise InputError("r_range", r_range, "magnitudes that the prior reaches")
    table = vstack(parts)[:n]
    table["radius"].unit, table["angle"].unit = units.arcsec, units.deg
    return table


def _draw(n: int, rng: np.random.Generator, priors: Mapping[str, Any]) -> Table:
    star = rng.random(n) < priors["prob_star"]
    log_flux = np.empty((n, len(priors["bands"])))
    reference = priors["bands"].index(priors["reference_band"])
    for kind, rows in (("star", np.flatnonzero(star)), ("galaxy", np.flatnonzero(~star))):
        flux, colour = priors["log_flux"][kind], priors["colour"][kind]
        weights = np.array(colour["weights"])
        component = rng.choice(len(weights), size=len(rows), p=weights / weights.sum())
        noise = rng.standard_normal((len(rows), log_flux.shape[1] - 1))
        root = np.linalg.cholesky(np.array(colour["covariances"]))
        step = np.array(colour["means"])[component] + np.einsum("nij,nj->ni", root[component], noise)
        chain = np.concatenate([np.zeros((len(rows), 1)), np.cumsum(step, axis=1)], axis=1)
        brightness = rng.normal(flux["mean"], flux["sd"], len(rows))
        log_flux[rows] = brightness[:, None] + chain - chain[:, reference, None]
    size, dev, roundness = priors["log_radius_arcsec"], priors["dev_logit"], priors["ellipticity"]
    eta = rng.normal(0.0, roundness["sd"], (2, n))
    shapes = {
        "dev_fraction": 1 / (1 + np.exp(-rng.normal(0.0, dev["sd"], n))),
        "radius": np.exp(rng.normal(size["mean"], size["sd"], n)),
        "axis_ratio": np.exp(-np.hypot(*eta)),
        "angle": np.degrees(np.arctan2(eta[1], eta[0])) / 2 % 180,
    }
    table = Table({"is_star": star})
    for j, band in enumerate(priors["bands"]):
        table[f"flux_{band}"] = np.exp(log_flux[:, j])
    for name, values in shapes.items():
        table[name] = np.where(star, np.nan, values)
    return table


def simulate_field(
    *,
    n_sources: int | None = None,
    seed: int,
    shape: tuple[int, int] = (256, 256),
    bands: Sequence[str] = "ugriz",
    psf: str = "moffat",
    priors: Mapping[str, Any] | None = None,
    r_range: tuple[float, float] | None = None,
    margin: float = 16.0,
    min_separation: float = 0.0,
    blend_fraction: float = 0.0,
    sources: Table | None = None,
    centre: tuple[float, float] = _CENTRE,
) -> tuple[Field, Table]:
    """A simulated SDSS field (0.396 arcsec per pixel; gain, sky and read noise of a real one) and its truth.

    Args:
        n_sources: number of sources to draw.
        seed: seed of positions, sources and noise.
        shape: rows and columns of every image.
        bands: any of "ugriz".
        psf: "moffat" (beta 3.5), "kolmogorov" or "survey" (Kolmogorov, an aberrated and obscured aperture,
            and a power-law wing), slightly elliptical, with a different width in each band.
            The images' :class:`PixelPsf` is its exact stamp, which includes the pixel's response.
        priors: see :func:`draw_sources`.
        r_range: see :func:`draw_sources`.
        margin: positions keep this far from the r image's edges [px].
        min_separation: positions keep this far from each other [px] (not those of blended pairs).
        blend_fraction: fraction of the sources that are placed 2 to 6 pixels from another source.
        sources: render these instead of new ones. If they have ``x`` and ``y``, those are their positions;
            else ``ra`` and ``dec`` [deg] are, if they have these.
        centre: (ra, dec) of the middle of the r image [deg].

    Returns:
        The field, and :func:`draw_sources`'s table with ``ra``, ``dec`` [deg] and ``x``, ``y`` [px, 0-based,
        pixel centres are integers] in the r band.

    Raises:
        InputError: an unknown band or PSF; neither or both of ``n_sources`` and ``sources``; or the image is
            too small for that many sources with that separation.
    """
    unknown = [band for band in bands if band not in _SURVEY]
    if unknown or not bands:
        raise InputError("bands", repr(bands), f"some of {''.join(_SURVEY)}")
    if psf not in _PSFS:
        raise InputError("psf", psf, f"one of {', '.join(_PSFS)}")
    if (n_sources is None) == (sources is None):
        raise InputError("n_sources and sources", "both" if sources is not None else "neither", "one of them")
    rng = np.random.default_rng(seed)
    if sources is None:
        sources = draw_sources(n_sources or 0, rng, priors=priors, r_range=r_range)
    truth = sources.copy()
    if "x" not in truth.colnames and "ra" in truth.colnames:
        truth["x"], truth["y"] = _wcs("r", shape, centre).world_to_pixel_values(truth["ra"], truth["dec"])
    elif "x" not in truth.colnames:
        x, y = _positions(len(truth), rng, shape, margin, min_separation, blend_fraction).T
        truth["x"], truth["y"] = x, y
    truth["ra"], truth["dec"] = _wcs("r", shape, centre).pixel_to_world_values(truth["x"], truth["y"])
    images = tuple(_render(band, truth, shape, psf, rng, centre) for band in bands)
    meta = {"simulator": f"GalSim {galsim.__version__}", "psf": psf, "seed": str(seed)}
    return Field(images, name=f"simulated-{seed}", meta=meta), truth


def with_holes(field: Field, holes: Sequence[Bool[np.ndarray, "y x"]], *, saturated: bool) -> Field:
    """The field as a detector gives it that lost some pixels: masked cores of bright stars, defects.

    Args:
        field: any field.
        holes: for each image, the pixels without a value (NaN).
        saturated: whether these pixels are marked as saturated.
    """

    def cut(image: Image, hole: Bool[np.ndarray, "y x"]) -> Image:
        return replace(
            image,
            counts=np.where(hole, np.nan, image.counts),
            valid=image.valid & ~hole,
            saturated=image.saturated | hole if saturated else image.saturated,
        )

    return replace(field, images=tuple(cut(*pair) for pair in zip(field, holes, strict=True)))


def _positions(
    n: int, rng: np.random.Generator, shape: tuple[int, int], margin: float, separation: float, blends: float
) -> Float[np.ndarray, "n 2"]:
    low, high = np.full(2, margin), np.array(shape[::-1]) - 1 - margin
    if (high <= low).any():
        raise InputError("margin", f"{margin} px", f"less than half of the {shape} image")
    xy = np.empty((0, 2))
    paired = rng.random(n) < blends
    for i in range(n):
        for _ in range(_TRIES):
            if paired[i] and i:
                angle, distance = rng.uniform(0, 2 * np.pi), rng.uniform(*_BLEND)
                new = xy[rng.integers(i)] + distance * np.array([np.cos(angle), np.sin(angle)])
                free = True
            else:
                new = rng.uniform(low, high)
                free = i == 0 or np.hypot(*(xy - new).T).min() >= separation
            if free and (new >= low).all() and (new <= high).all():
                break
        else:
            raise InputError("min_separation", f"{separation} px for {n} sources", f"room in a {shape} image")
        xy = np.vstack([xy, new])
    return xy


def _wcs(band: str, shape: tuple[int, int], centre: tuple[float, float]) -> WCS:
    """A TAN WCS with east to the left when north is up, rotated by the field's and the band's angle."""
    turn = np.deg2rad(_FIELD_ROTATION + _SURVEY[band].rotation)
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval = centre
    wcs.wcs.crpix = (np.array(shape[::-1]) + 1) / 2 + _SURVEY[band].shift
    cos, sin = np.cos(turn), np.sin(turn)
    wcs.wcs.cd = _SCALE / 3600 * np.array([[-cos, sin], [sin, cos]])
    wcs.wcs.set()
    return wcs


def _optics(band: str, psf: str) -> galsim.GSObject:
    """The PSF of a band in pixel units, without the pixel's response."""
    width, (g1, g2) = _SURVEY[band].fwhm / _SCALE, _SURVEY[band].shear
    if psf == "moffat":
        return galsim.Moffat(beta=_MOFFAT_BETA, fwhm=width).shear(g1=g1, g2=g2)
    if psf == "kolmogorov":
        return galsim.Kolmogorov(fwhm=width).shear(g1=g1, g2=g2)
    return _survey_psf(_SHARP[band] / _SCALE, g1, g2)


def _survey_psf(width: float, g1: float, g2: float) -> galsim.GSObject:
    """Atmosphere, optics and wing, as a table that is interpolated: transforms of the wing itself are slow.

    The aperture is of 2.5 m at .6 micrometre, half obscured, and out of focus by a twentieth of a wave.
    """
    size = _STAMP * _FINE
    optics = galsim.OpticalPSF(
        lam_over_diam=0.05 / _SCALE, obscuration=0.5, defocus=0.05, astig1=0.03, coma1=0.05
    )
    core = galsim.Convolve(galsim.Kolmogorov(fwhm=width), optics).shear(g1=g1, g2=g2)
    table = core.drawImage(nx=size, ny=size, scale=1 / _FINE, method="no_pixel", dtype=float)
    y, x = (np.mgrid[:size, :size] - size // 2) / _FINE
    wing = (1 + (x**2 + y**2) / (1.3 * width) ** 2) ** -_WING_BETA
    table.array[:] = (1 - _WING) * table.array / table.array.sum() + _WING * wing / wing.sum()
    return galsim.InterpolatedImage(table, scale=1 / _FINE, flux=1.0)


def _profile(row: Table.Row, local: galsim.JacobianWCS) -> galsim.GSObject:
    """A source of unit flux in pixel units; ``local`` maps pixels to (east, north) [arcsec]."""
    if row["is_star"]:
        return galsim.DeltaFunction()
    radius, ratio, dev = float(row["radius"]), float(row["axis_ratio"]), float(row["dev_fraction"])
    turn = galsim.Shear(q=ratio, beta=(90.0 - float(row["angle"])) * galsim.degrees)
    if "sersic" in row.colnames and np.isfinite(row["sersic"]):
        whole = galsim.Sersic(n=float(row["sersic"]), half_light_radius=radius)
    else:
        bulge = galsim.DeVaucouleurs(half_light_radius=radius, flux=dev)
        whole = bulge + galsim.Exponential(half_light_radius=radius, flux=1 - dev)
    return local.profileToImage(whole.shear(turn)).withFlux(1.0)


def _render(
    band: str,
    truth: Table,
    shape: tuple[int, int],
    psf: str,
    rng: np.random.Generator,
    centre: tuple[float, float],
) -> Image:
    survey, wcs, optics = _SURVEY[band], _wcs(band, shape, centre), _optics(band, psf)
    (a, b), (c, d) = wcs.wcs.cd * 3600
    local = galsim.JacobianWCS(a, b, c, d)
    canvas = galsim.ImageD(shape[1], shape[0], xmin=0, ymin=0, scale=1.0, init_value=0.0)
    x, y = wcs.world_to_pixel_values(truth["ra"], truth["dec"])
    for row, px, py in zip(truth, x, y, strict=True):
        reach = float(_REACH)
        if not row["is_star"]:
            reach += _EXTENT * float(row["radius"]) / np.sqrt(float(row["axis_ratio"])) / _SCALE
        edges = (px - reach, px + reach, py - reach, py + reach)
        box = galsim.BoundsI(*(round(edge) for edge in edges)) & canvas.bounds
        if not box.isDefined():
            continue
        electrons = float(row[f"flux_{band}"]) * survey.gain
        model = galsim.Convolve(_profile(row, local), optics).withFlux(electrons)
        model.drawImage(canvas[box], center=galsim.PositionD(px, py), add_to_image=True)
    expected = np.maximum(canvas.array, 0.0) + survey.sky  # FFTs leave ringing of a millionth of the peak
    read = survey.read
    counts = rng.poisson(expected) + rng.normal(read, np.sqrt(read), shape)
    stamp = optics.drawImage(nx=_STAMP, ny=_STAMP, scale=1.0, dtype=float).array
    return Image(
        band=band,
        counts=counts,
        sky=np.full(shape, survey.sky + read),
        calibration=np.full(shape, survey.gain),
        valid=np.ones(shape, bool),
        saturated=np.zeros(shape, bool),
        wcs=wcs,
        psf=PixelPsf(stamp),
        name=f"simulated {band}",
    )
