"""Seven epochs of one Stripe-82 stamp: do fluxes scatter between epochs as their quoted errors say?

Sources are detected once, on all epochs together. Each epoch is then fitted alone, holding those detections,
and all are fitted jointly. Writes ``fluxes.csv`` (every source, epoch and band), ``scatter.csv`` (chi2 per
degree of freedom of each flux, colour and coordinate, and in total) and ``epochs.png``.

The total is over sources away from the edge of the stamp, and fluxes and colours of some signal to noise: a
faint flux leans on the prior, which all epochs share, so that it scatters less than its error. Calibration
errors differ between epochs; chi2 is given without and with the survey's published ones.

The stamps were resampled: their pixels scatter less than the counts say (pixel chi2 below 1), but are
correlated. What counts for a flux is the noise as the PSF sees it: the variance of residuals that are
averaged with the weights of the PSF, relative to that of independent pixels of the stated variance. It is
printed for each band.

The data have seven epochs. For more, epochs are simulated: Poisson noise, independent from pixel to pixel,
about the model that was fitted to all epochs jointly, with the sky and the PSF of each epoch in turn. Their
fluxes are also compared with those that they were simulated with. Fluxes of the real epochs are compared
with the joint fit, which is a co-add of all of them, after removal of its share in the errors. The joint fit
is compared with the mean of what the survey's Photo measured in its single epochs.

References:
    Padmanabhan et al. 2008, ApJ 674, 1217 (calibration: 1 % in griz, 2 % in u);
    Pier et al. 2003, AJ 125, 1559 (astrometry against UCAC, as in stripe 82: 45 mas a coordinate).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import matplotlib
import numpy as np
import torch
import typer
from astropy.table import Table, vstack
from jaxtyping import Bool, Float
from scipy.ndimage import convolve

from astrozoo import data
from astrozoo._files import replacing
from astrozoo.data.images import Field
from astrozoo.data.sdss import read_catalog, read_stamps
from astrozoo.diagnostics.scoring import match
from astrozoo.errors import AstrozooError
from astrozoo.models.celeste import log_band_flux
from astrozoo.survey.celeste.fit import FieldFit, fit_field
from astrozoo.survey.detect import detect

matplotlib.use("agg")
import matplotlib.pyplot as plt

_CALIBRATION = {"u": 0.02, "g": 0.01, "r": 0.01, "i": 0.01, "z": 0.01}
_ASTROMETRY = 45.0  # [mas], of a run's coordinates
_EXAMPLE = "Example: `python experiments/celeste_epochs.py --out runs/epochs`"

app = typer.Typer(add_completion=False)


@dataclass(frozen=True)
class Measured:
    """Posterior means and SDs of one fit; the names of ``quantities`` are those of the columns."""

    quantities: tuple[str, ...]
    mean: Float[np.ndarray, "s quantity"]
    sd: Float[np.ndarray, "s quantity"]
    p_star: Float[np.ndarray, "s"]
    k_hat: Float[np.ndarray, "s"]
    r_hat: Float[np.ndarray, "s"]
    poor: np.ndarray
    converged: np.ndarray
    chi2: Float[np.ndarray, "s band"]

    @classmethod
    def of(cls, fit: FieldFit) -> Measured:
        """Fluxes [nMgy], colours [ln ratio], position [mas]."""
        bands, draws = fit.prior.bands, fit.draws
        log_flux, colour = (torch.from_numpy(draws[name]) for name in ("log_flux", "colour"))
        flux = log_band_flux(log_flux, colour, fit.prior.reference).exp().numpy()
        values = np.concatenate((flux, draws["colour"], 1000 * draws["offset"]), -1)
        colours = tuple(f"{a}-{b}" for a, b in pairwise(bands))
        return cls(
            (*bands, *colours, "east", "north"),
            values.mean(1),
            values.std(1),
            draws["is_star"].mean(1),
            fit.k_hat,
            fit.r_hat,
            fit.poor,
            fit.converged,
            fit.chi2,
        )


def epochs_of(field: Field) -> list[Field]:
    """The images of each epoch (survey run, camera column and field) as a field of its own."""
    names = dict.fromkeys(image.name.partition("-")[2] for image in field)
    return [
        Field(tuple(i for i in field if i.name.partition("-")[2] == name), name=f"{field.name} {name}")
        for name in names
    ]


def calibration_sd(quantity: str, mean: Float[np.ndarray, "s"]) -> Float[np.ndarray, "s"]:
    """What errors of calibration and astrometry add to the scatter between epochs of one quantity."""
    if quantity in _CALIBRATION:
        return _CALIBRATION[quantity] * mean
    pair = quantity.split("-")
    if len(pair) == 2:
        return np.full_like(mean, np.hypot(*(_CALIBRATION[band] for band in pair)))
    return np.full_like(mean, _ASTROMETRY)


def chi2(
    x: Float[np.ndarray, "epoch s"], sd: Float[np.ndarray, "epoch s"], use: Bool[np.ndarray, "epoch s"]
) -> tuple[Float[np.ndarray, "s"], Float[np.ndarray, "s"]]:
    """The weighted mean over epochs, and chi2 about it."""
    weight = use / sd**2
    mean = (weight * x).sum(0) / weight.sum(0)
    return mean, (weight * (x - mean) ** 2).sum(0)


def scatter(
    epochs: list[Measured], joint: Measured, edge: np.ndarray, minimum_snr: float, trusted: bool
) -> Table:
    """A row per source and quantity, with ``used`` where it is a part of the totals.

    Args:
        trusted: use only fits that do not say of themselves that they are poor.
    """
    rows = []
    x, sd = np.stack([m.mean for m in epochs]), np.stack([m.sd for m in epochs])
    use = ~(np.stack([m.poor for m in epochs]) & trusted)
    bands = [q for q in joint.quantities if q in _CALIBRATION]
    snr = np.median(x[..., : len(bands)] / sd[..., : len(bands)], 0)
    for q, name in enumerate(joint.quantities):
        of = [bands.index(b) for b in name.split("-") if b in bands] or [bands.index("r")]
        for s in np.flatnonzero(use.sum(0) > 1):
            xs, sds, uses = (a[:, s : s + 1] for a in (x[..., q], sd[..., q], use))
            mean, plain = chi2(xs, sds, uses)
            floored = chi2(xs, np.hypot(sds, calibration_sd(name, mean)), uses)[1]
            lowest = snr[s, of].min()
            rows.append(
                {
                    "source": s,
                    "quantity": name,
                    "trusted": trusted,
                    "dof": uses.sum() - 1,
                    "mean": mean[0],
                    "scatter": xs[uses].std(ddof=1),
                    "quoted_sd": np.median(sds[uses]),
                    "chi2": plain[0] / (uses.sum() - 1),
                    "chi2_calibrated": floored[0] / (uses.sum() - 1),
                    "joint": joint.mean[s, q],
                    "joint_sd": joint.sd[s, q],
                    "snr": lowest,
                    "used": not edge[s] and lowest > minimum_snr,
                }
            )
    return Table(rows)


def totals(table: Table) -> list[str]:
    """Lines of chi2 per degree of freedom of fluxes, colours and positions, and its expected spread."""
    lines = []
    for title, chosen in (
        ("fluxes", [q in _CALIBRATION for q in table["quantity"]]),
        ("colours", ["-" in q for q in table["quantity"]]),
        ("positions", [q in ("east", "north") for q in table["quantity"]]),
    ):
        part = table[np.array(chosen) & table["used"]]
        freedom = int(part["dof"].sum())
        if freedom:
            plain, floored = (part["dof"] @ part[c] / freedom for c in ("chi2", "chi2_calibrated"))
            lines.append(
                f"{title}: chi2/dof {plain:.2f}, with calibration errors {floored:.2f}; expected 1 +- "
                f"{np.sqrt(2 / freedom):.2f} ({freedom} dof, of correlated quantities)"
            )
    return lines


def coverage(
    epochs: list[Measured], truth: Measured, edge: np.ndarray, minimum_snr: float, shared: bool
) -> str:
    """Shares of the fluxes of single epochs within 1, 2 and 3 SD of the true ones, or of a co-add.

    Args:
        shared: the epochs are a part of the co-add, whose variance is then subtracted from theirs.
    """
    bands = [b for b, q in enumerate(truth.quantities) if q in _CALIBRATION]
    x, sd = (np.stack([getattr(m, name)[:, bands] for m in epochs]) for name in ("mean", "sd"))
    bright = (np.median(x / sd, 0) > minimum_snr) & ~edge[:, None]
    use = bright & ~np.stack([m.poor for m in epochs])[..., None]
    variance = sd**2 - truth.sd[:, bands] ** 2 if shared else sd**2
    z = np.abs(x - truth.mean[:, bands])[use] / np.sqrt(variance.clip(min=1e-12))[use]
    shares = " ".join(f"{np.mean(z < k):.2f}" for k in (1, 2, 3))
    return f"{shares} within 1, 2, 3 SD ({use.sum()} fluxes; nominal .68 .95 1.00)"


def noise_through_the_psf(fit: FieldFit) -> dict[str, float]:
    """For each band, the variance of residuals averaged by the PSF, over that of independent pixels."""
    ratios: dict[str, list[float]] = {}
    for image, model in zip(fit.field, fit.model, strict=True):
        z = np.where(image.valid, (image.counts - model) / np.sqrt(model), 0.0)
        stamp = image.psf.stamp(image.shape[1] / 2, image.shape[0] / 2)
        whole = convolve(image.valid.astype(float), stamp / stamp.sum(), mode="constant") > 0.98
        averaged = convolve(z, stamp, mode="constant")[whole]
        ratios.setdefault(image.band, []).append(float(averaged.var() / (stamp**2).sum()))
    return {band: float(np.median(values)) for band, values in ratios.items()}


def simulated(fit: FieldFit, epochs: list[Field], count: int, seed: int) -> list[Field]:
    """Epochs with the noise of independent pixels about the model of a joint fit."""
    model = {image.name: expected for image, expected in zip(fit.field, fit.model, strict=True)}
    rng = np.random.default_rng(seed)
    return [
        Field(
            tuple(
                replace(image, counts=rng.poisson(model[image.name]).astype(float))
                for image in epochs[n % len(epochs)]
            ),
            name=f"simulated {n}",
        )
        for n in range(count)
    ]


def photo_means(joint: Measured, detections: Table, path: Path, edge: np.ndarray) -> list[str]:
    """Fluxes of the joint fit beside the means of Photo's single epochs, with errors."""
    photo = read_catalog(path)
    lines = []
    for s in np.flatnonzero(~edge):
        rows = [k for k in range(len(photo)) if len(match(detections[s : s + 1], photo[k : k + 1])[0])]
        for b, band in enumerate(_CALIBRATION):
            of_star = joint.p_star[s] > 0.5
            values = np.asarray(photo[f"{'psf' if of_star else 'exp'}flux_{band}"])[rows]
            if len(rows) > 2:
                mean, error = values.mean(), values.std(ddof=1) / np.sqrt(len(rows))
                z = (joint.mean[s, b] - mean) / np.hypot(error, joint.sd[s, b])
                lines.append(
                    f"source {s} {band}: joint {joint.mean[s, b]:.2f} +- {joint.sd[s, b]:.2f}, Photo's "
                    f"{len(rows)} epochs {mean:.2f} +- {error:.2f}, {z:.1f} SD"
                )
    return lines


def fluxes(epochs: list[Measured], joint: Measured, names: list[str]) -> Table:
    """A row per source, epoch (and all jointly) and band."""
    rows = [
        {
            "source": s,
            "epoch": name,
            "band": band,
            "flux": m.mean[s, b],
            "flux_sd": m.sd[s, b],
            "p_star": m.p_star[s],
            "pixel_chi2": m.chi2[s, b],
            "k_hat": m.k_hat[s],
            "r_hat": m.r_hat[s],
            "poor": bool(m.poor[s]),
            "converged": bool(m.converged[s]),
        }
        for name, m in zip([*names, "joint"], [*epochs, joint], strict=True)
        for s in range(len(m.mean))
        for b, band in enumerate(_CALIBRATION)
    ]
    return Table(rows)


def picture(epochs: list[Measured], joint: Measured, table: Table, path: Path) -> None:
    """Flux by epoch with its SD, and the joint fit's as a band; sources down, bands across."""
    sources, bands = len(joint.mean), list(_CALIBRATION)
    figure, axes = plt.subplots(
        sources, len(bands), figsize=(13, 2.2 * sources), layout="constrained", squeeze=False
    )
    place = np.arange(len(epochs))
    for s in range(sources):
        for b, band in enumerate(bands):
            row = table[(table["source"] == s) & (table["quantity"] == band)][0]
            axis, centre, sd = axes[s, b], joint.mean[s, b], joint.sd[s, b]
            axis.axhspan(centre - sd, centre + sd, color="C1", alpha=0.4, lw=0)
            colour = "C0" if row["used"] else "0.6"
            for e, m in enumerate(epochs):
                hollow = "none" if m.poor[s] else colour
                axis.errorbar(e, m.mean[s, b], m.sd[s, b], fmt="o", color=colour, mfc=hollow, capsize=2, ms=4)
            axis.set_title(f"{band}: chi2/dof {row['chi2']:.2f} ({row['chi2_calibrated']:.2f})", fontsize=9)
            axis.set_xticks(place)
            axis.set_xlim(-0.5, len(epochs) - 0.5)
        note = "" if table["used"][table["source"] == s].any() else "\n(not in the total)"
        axes[s, 0].set_ylabel(f"source {s}{note}\nflux [nMgy]")
    for axis in axes[-1]:
        axis.set_xlabel("epoch")
    figure.suptitle(
        "Points: one epoch (hollow: flagged as poor; grey: not in the total); band: all epochs jointly;"
        " in brackets: with calibration errors"
    )
    with replacing(path) as partial:
        figure.savefig(partial, dpi=130)
    plt.close(figure)


def _write(table: Table, path: Path) -> None:
    with replacing(path) as partial:
        table.write(partial, overwrite=True, format="ascii.csv")


@app.command(epilog=_EXAMPLE)
def main(
    out: Annotated[Path, typer.Option(help="Folder for tables and the picture.")],
    stamp: Annotated[str, typer.Option(help="Name of the stamp.")] = "5.0073-0.0739",
    minimum_snr: Annotated[float, typer.Option(min=0, help="Of a flux that enters the totals.")] = 5.0,
    seed: Annotated[int, typer.Option(min=0, help="Of the posterior draws.")] = 0,
    more: Annotated[int, typer.Option(min=0, help="Epochs to simulate.")] = 10,
) -> None:
    """Scatter of fluxes between the epochs of a stamp, against their quoted errors."""
    folder = data.root() / "sdss" / "stripe82_stamps"
    field = read_stamps(folder, stamp)
    out.mkdir(parents=True, exist_ok=True)
    detections = detect(field)
    epochs = epochs_of(field)

    def fitted(part: Field) -> FieldFit:
        fit = fit_field(part, catalog=detections, seed=seed, progress=False)
        typer.echo(f"{part.name}: {sum(fit.stats['seconds'].values()):.1f} s", err=True)
        return fit

    whole = fitted(field)
    alone, joint = [Measured.of(fitted(part)) for part in epochs], Measured.of(whole)
    measured = [*alone, joint]
    edge = np.asarray(detections["edge"])
    tables = [scatter(alone, joint, edge, minimum_snr, trusted) for trusted in (False, True)]
    _write(fluxes(alone, joint, [part.name.rpartition(" ")[2] for part in epochs]), out / "fluxes.csv")
    _write(vstack(tables), out / "scatter.csv")
    picture(alone, joint, tables[0], out / "epochs.png")
    count, sampled = (sum(int(x.sum()) for x in part) for part in zip(
        *((m.poor, np.isfinite(m.r_hat)) for m in measured), strict=True
    ))  # fmt: skip
    typer.echo(f"{count} of {len(detections) * len(measured)} posteriors are poor; {sampled} are of chains")
    for title, table in zip(("All fits", "Fits that are not poor"), tables, strict=True):
        typer.echo("\n".join([title, *totals(table)]))
    pixels = np.nanmean(np.concatenate([m.chi2 for m in alone]), 0)
    by_band = [f"{b} {c:.2f}" for b, c in zip(_CALIBRATION, pixels, strict=True)]
    typer.echo(f"pixel chi2 by band: {', '.join(by_band)}")
    through = [f"{band} {ratio:.2f}" for band, ratio in noise_through_the_psf(whole).items()]
    typer.echo(f"variance through the PSF over the stated one: {', '.join(through)}")
    typer.echo(f"against the joint fit: {coverage(alone, joint, edge, minimum_snr, shared=True)}")
    typer.echo("\n".join(photo_means(joint, detections, folder / f"cat-{stamp}.fits", edge)))
    if more:
        again = [Measured.of(fitted(part)) for part in simulated(whole, epochs, more, seed)]
        poor = sum(int(m.poor.sum()) for m in again)
        typer.echo(f"{more} simulated epochs, {poor} of {more * len(detections)} posteriors are poor")
        typer.echo("\n".join(totals(scatter(again, joint, edge, minimum_snr, True))))
        typer.echo(f"against the truth: {coverage(again, joint, edge, minimum_snr, shared=False)}")


if __name__ == "__main__":
    try:
        app()
    except AstrozooError as error:
        raise SystemExit(f"error: {error}") from None
