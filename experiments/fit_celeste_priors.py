"""Fit the priors of the Celeste model to Stripe-82 co-adds: ``models/celeste_priors_stripe82.json``.

The co-add is about two magnitudes deeper than one SDSS field, so its measurements stand for truth. Only
derived numbers are written. What is fitted to which rows (``_CUTS``):

* p(star) and ln r flux: 15 < r < 22.5, what a single field detects.
* colours: 16 < r < 21.5 for galaxies and, so that few galaxies pass for stars, 16 < r < 20.5 for stars.
  Eight and five Gaussians by *extreme deconvolution* (Bovy, Hogg & Roweis 2011,
  Ann. Appl. Stat. 5, 1657), with the flux errors of the co-add's depth (Annis et al. 2014, ApJ 794, 120).
  A flux below its error is taken as its error, uncertain by a factor e: u drop-outs stay in, as faint in u.
  Ratios of adjacent bands beyond e^3.5 are failures of the measurement and left out.
* radii: the rows of the flux; ellipticity: galaxies, 15 < r < 21, where Photo measures it well.

Photo's half-light radii are along the major axis; ours are those of the circle of equal area. Galaxies
beyond 8 arcsec are halos of bright stars. Each component of the ellipticity (astrozoo.physics.profiles) is
normal, so -ln(axis ratio) is Rayleigh.

Two are choices, not fits: the position, one pixel about the detection; and the logit of the de Vaucouleurs
fraction, because Photo's fractions are pinned to 0 and 1 by noise.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from astropy.table import Table, vstack
from jaxtyping import Bool, Float

from astrozoo._files import replacing
from astrozoo.data import root
from astrozoo.errors import AstrozooError, DataError

_BANDS = "ugriz"
_ASINH_B = (1.4e-10, 0.9e-10, 1.2e-10, 1.8e-10, 7.4e-10)  # Lupton et al. 1999: softening, per band
_DEPTH = (23.9, 25.1, 24.6, 24.1, 22.8)  # 5-sigma point-source depth of the co-add [mag], Annis et al. 2014
_CUTS = {
    "flux": (15.0, 22.5),
    "star colour": (16.0, 20.5),
    "galaxy colour": (16.0, 21.5),
    "shape": (15.0, 21.0),
}
_RADII = (0.1, 8.0)  # accepted half-light radii [arcsec]
_DEV_LOGIT_SD = 2.7  # about as U-shaped as Beta(1/2, 1/2), the law of Celeste's own simulations
_POSITION_SD = 0.4  # arcsec, each coordinate
_FLOOR = 0.05**2  # smallest eigenvalue of a colour covariance: 5 per cent
_CALIBRATION_ERROR = 0.03  # of every ln flux: zero points and profile mismatch
_COMPONENTS = {"star": 5, "galaxy": 8}
_STEPS = 400
_LARGEST_COLOUR = 3.5  # of a natural-log flux ratio of adjacent bands

app = typer.Typer(add_completion=False)


def _nanomaggies(mag: np.ndarray, softening: float) -> np.ndarray:
    return 2e9 * softening * np.sinh(-np.log(softening) - mag * np.log(10) / 2.5)


def _read(paths: list[Path]) -> tuple[Bool[np.ndarray, "row"], Float[np.ndarray, "row band"], Table]:
    """Whether each row is a star; its fluxes [nMgy], by the PSF or the galaxy model; and the table."""
    if not paths:
        raise DataError("coadd catalogues", "no file", "coadd_*.fit*")
    tables = [Table.read(path) for path in paths]
    shared = [c for c in tables[0].colnames if all(c in t.colnames for t in tables)]
    table = vstack([t[shared] for t in tables], metadata_conflicts="silent")
    star = np.asarray(table["probpsf"]) > 0.5
    dev = np.asarray(table["fracdev_r"], float)
    flux = np.empty((len(table), len(_BANDS)))
    for j, (band, b) in enumerate(zip(_BANDS, _ASINH_B, strict=True)):
        psf, dv, ex = (
            _nanomaggies(np.asarray(table[f"{k}mag_{band}"], float), b) for k in ("psf", "dev", "exp")
        )
        flux[:, j] = np.where(star, psf, dev * dv + (1 - dev) * ex)
    return star, flux, table


def _colours(
    flux: Float[np.ndarray, "row band"], radius: Float[np.ndarray, "row"]
) -> tuple[Float[np.ndarray, "row 4"], Float[np.ndarray, "row 4 4"]]:
    """Colours ln(f[b+1] / f[b]) and their error covariances, which grow with the area (radius [arcsec])."""
    point = 10 ** ((22.5 - np.array(_DEPTH)) / 2.5) / 5
    sd = point * np.sqrt(1 + (radius[:, None] / 0.6) ** 2)
    flux = np.maximum(flux, sd)
    variance = (sd / flux) ** 2 + _CALIBRATION_ERROR**2
    difference = np.diff(np.eye(len(_BANDS)), axis=0)
    return np.log(flux) @ difference.T, np.einsum("ib,nb,jb->nij", difference, variance, difference)


def extreme_deconvolution(
    x: Float[np.ndarray, "n d"],
    noise: Float[np.ndarray, "n d d"],
    components: int,
    seed: int,
    steps: int = 400,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A Gaussian mixture of the noiseless ``x`` by EM (Bovy et al. 2011, eqs. 16-17).

    Covariances are shrunk by a quarter of a row towards the floor and their eigenvalues kept above it.

    Returns:
        Weights [k], means [k, d], covariances [k, d, d], heaviest component first.
    """
    rng = np.random.default_rng(seed)
    n, d = x.shape
    weight = np.full(components, 1 / components)
    mean = x[rng.choice(n, components, replace=False)]
    cov = np.repeat(np.cov(x.T)[None] / 2, components, 0)
    for _ in range(_STEPS):
        total = cov[:, None] + noise  # [k, n, d, d]
        gain = cov[:, None] @ np.linalg.inv(total)
        off = x - mean[:, None]  # [k, n, d]
        half = np.linalg.solve(total, off[..., None])[..., 0]
        logp = np.log(weight)[:, None] - 0.5 * ((off * half).sum(-1) + np.linalg.slogdet(total)[1])
        q = np.exp(logp - np.logaddexp.reduce(logp, axis=0))
        count = q.sum(1)
        expected = mean[:, None] + np.einsum("knij,knj->kni", gain, off)
        spread = cov[:, None] - gain @ cov[:, None]
        mean = np.einsum("kn,kni->ki", q, expected) / count[:, None]
        off = expected - mean[:, None]
        cov = np.einsum("kn,kni,knj->kij", q, off, off) + np.einsum("kn,knij->kij", q, spread)
        cov = (cov + 0.25 * _FLOOR * np.eye(d)) / (count + 0.25)[:, None, None]
        value, vector = np.linalg.eigh((cov + cov.swapaxes(1, 2)) / 2)
        cov = np.einsum("kij,kj,klj->kil", vector, np.maximum(value, _FLOOR), vector)
        weight = count / n
    order = np.argsort(-weight)
    return weight[order], mean[order], cov[order]


def _normal(log: np.ndarray) -> dict[str, float]:
    return {"mean": float(log.mean()), "sd": float(log.std(ddof=1))}


def _round(value: object) -> object:
    if isinstance(value, dict):
        return {k: _round(v) for k, v in value.items()}
    if isinstance(value, np.ndarray):
        return np.round(value, 6).tolist()
    return round(value, 6) if isinstance(value, float) else value


def fit(paths: list[Path], seed: int = 0) -> dict[str, object]:
    """The priors as a dictionary with the keys of ``models/celeste_priors_stripe82.json``."""
    star, flux, table = _read(paths)
    r = 22.5 - 2.5 * np.log10(np.maximum(flux[:, 2], 1e-9))
    dev = np.asarray(table["fracdev_r"], float)
    radius, ratio = (np.where(dev > 0.5, table[f"dev{k}_r"], table[f"exp{k}_r"]) for k in ("rad", "ab"))
    sound = star | ((radius > _RADII[0]) & (radius < _RADII[1]))
    rows = {name: sound & (r > low) & (r < high) for name, (low, high) in _CUTS.items()}
    types = {"star": star, "galaxy": ~star}
    colour: dict[str, object] = {}
    for name, chosen in types.items():
        use = rows[f"{name} colour"] & chosen
        x, noise = _colours(flux[use], np.where(star, 0.0, radius)[use])
        sane = (np.abs(x) < _LARGEST_COLOUR).all(1)
        weight, mean, cov = extreme_deconvolution(x[sane], noise[sane], _COMPONENTS[name], seed)
        weight = np.append(weight[:-1].round(6), 1 - weight[:-1].round(6).sum())
        colour[name] = {"weights": weight, "means": mean, "covariances": cov}
    galaxy, shape = rows["flux"] & ~star, rows["shape"] & ~star
    counts = {f"flux {t}": int((rows["flux"] & types[t]).sum()) for t in types}
    counts |= {f"{t} colour": int((rows[f"{t} colour"] & types[t]).sum()) for t in types}
    counts["shape galaxy"] = int(shape.sum())
    prior = {
        "bands": list(_BANDS),
        "reference_band": "r",
        "prob_star": float(star[rows["flux"]].mean()),
        "log_flux": {name: _normal(np.log(flux[rows["flux"] & chosen, 2])) for name, chosen in types.items()},
        "colour": colour,
        "log_radius_arcsec": _normal(np.log(radius[galaxy]) + np.log(ratio[galaxy]) / 2),
        "dev_logit": {"sd": _DEV_LOGIT_SD},
        "ellipticity": {"sd": float(np.sqrt(np.mean(np.log(ratio[shape]) ** 2) / 2))},
        "position_arcsec": {"sd": _POSITION_SD},
        "units": "flux nMgy; colour k = ln(flux[k+1] / flux[k]); radius of the circle of equal area",
        "source": f"experiments/fit_celeste_priors.py, SDSS Stripe-82 co-add catalogues (rows: {counts}); "
        f"r limits [mag] {_CUTS}; colours by extreme deconvolution, eigenvalue floor {_FLOOR:g}",
    }
    return {key: _round(value) for key, value in prior.items()}


@app.command(epilog="Example: python experiments/fit_celeste_priors.py --catalogs shared/data/sdss/catalogs")
def main(
    catalogs: Annotated[Path | None, typer.Option(help="Folder with coadd_*.fit* catalogues.")] = None,
    out: Annotated[Path, typer.Option(help="Where to write.")] = Path("models/celeste_priors_stripe82.json"),
    seed: Annotated[int, typer.Option(help="Seed of the start of the mixtures.")] = 0,
) -> None:
    """Fit the priors of the Celeste model to co-add catalogues."""
    if catalogs is None:
        data = root()
        if data is None:
            raise typer.BadParameter("no local survey data (ASTROZOO_DATA): give --catalogs")
        catalogs = data / "sdss" / "catalogs"
    prior = fit(sorted(catalogs.glob("coadd_*.fit*")), seed)
    with replacing(out) as partial:
        partial.write_text(json.dumps(prior, indent=1) + "\n")
    typer.echo(f"wrote {out}: {prior['source']}")


if __name__ == "__main__":
    try:
        app()
    except AstrozooError as error:
        raise SystemExit(f"error: {error}") from None
