"""The picture of a fitted lens: data, model, residual, arcs, source, critical lines and caustics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from jaxtyping import Float
from matplotlib.colors import AsinhNorm
from matplotlib.figure import Figure
from torch import Tensor

from astrozoo.physics import imaging
from astrozoo.types import Problem, Result

__all__ = ["CAPTION", "count_images", "critical_lines", "draws_of", "lens_figure"]

CAPTION = (
    "Top: the image; the model's image, its mean over draws; their difference in SDs of the noise. Bottom: "
    "the image without the light of the lens, with critical lines; the model of the arcs; the source, "
    "unlensed, with caustics. Grey pixels are masked. Residuals that are noise have no structure. A source "
    "outside the caustics has one image only, and is not strongly lensed."
)
_FINE = 300
"""Points along a side of the grid on which critical lines and images are found."""
_DRAWS = 40
"""Draws that pictures are averaged over."""
_SOFTENING = 0.02
"""[peak] Brightness around which the stretch of the pictures changes from linear to logarithmic."""

Line = Float[np.ndarray, "2 n"]


def draws_of(result: Result, count: int) -> list[dict[str, Tensor]]:
    """``count`` draws, evenly spaced over all chains, each as site -> tensor."""
    flat = {name: values.reshape(-1, *values.shape[2:]) for name, values in result.draws.items()}
    total = len(next(iter(flat.values())))
    rows = np.linspace(0, total - 1, min(count, total)).astype(int)
    return [{name: torch.as_tensor(values[i]) for name, values in flat.items()} for i in rows]


def lens_figure(problem: Problem, result: Result, band: int = 0) -> Figure:
    """The picture of one band."""
    model: Any = problem.model
    data, draws = problem.args[0], draws_of(result, _DRAWS)
    with torch.no_grad():
        images = [
            torch.stack([model.render(v, data, parts)[band] for v in draws]).mean(0).numpy()
            for parts in _PARTS
        ]
    whole, lens, arcs = images
    image, mask = data.image[band].numpy(), data.mask[band].numpy()
    sigma = data.total_variance(torch.as_tensor(whole)[None].expand_as(data.image))[band].sqrt().numpy()
    middle = draws[len(draws) // 2]
    lines = critical_lines(model, middle, data)
    source, behind = _source(model, draws, band)
    seen = np.where(mask, image, np.nan)
    y, x = (0.5 * n * float(data.pixel_scale) for n in image.shape)
    frame = (-x, x, -y, y)
    figure, axes = plt.subplots(2, 3, figsize=(13, 8.4), layout="constrained")
    bright, arc = np.nanquantile(seen, 0.999), np.nanquantile(np.where(mask, image - lens, np.nan), 0.998)
    panels: Sequence[tuple[str, np.ndarray, Mapping[str, Any]]] = (
        ("image", seen, {"norm": _stretch(bright)}),
        ("model", np.where(mask, whole, np.nan), {"norm": _stretch(bright)}),
        ("residual [SD]", (seen - whole) / sigma, {"vmin": -5, "vmax": 5, "cmap": "coolwarm"}),
        ("image without the lens's light; critical lines", seen - lens, {"vmin": 0, "vmax": arc}),
        ("model of the arcs", np.where(mask, arcs, np.nan), {"vmin": 0, "vmax": arc}),
        ("source; caustics", source, {"extent": behind}),
    )
    for axis, (title, values, kind) in zip(axes.flat, panels, strict=True):
        axis.set_facecolor("0.6")
        shown = axis.imshow(values, origin="lower", **{"cmap": "magma", "extent": frame, **kind})
        figure.colorbar(shown, ax=axis, shrink=0.8)
        axis.set(title=title, xlabel="arcsec")
    for line, caustic in lines:
        axes[1, 0].plot(*line, "c", lw=0.9)
        axes[1, 2].plot(*caustic, "c", lw=0.9)
    axes[1, 2].set(xlim=behind[:2], ylim=behind[2:])
    figure.suptitle(result.verdict)
    plt.close(figure)
    return figure


_PARTS: Any = (("lens", "source"), ("lens",), ("source",))


def _stretch(bright: float) -> AsinhNorm:
    return AsinhNorm(linear_width=max(_SOFTENING * bright, 1e-30), vmin=0, vmax=max(bright, 1e-30))


def _source(
    model: Any, draws: Sequence[Mapping[str, Tensor]], band: int
) -> tuple[Float[np.ndarray, "n n"], tuple[float, float, float, float]]:
    """Mean surface brightness of the source, and the edges of the square that it is shown on [arcsec]."""
    if hasattr(model, "middle"):
        centre, half = np.asarray(model.middle), model.side / 2
    else:
        centre = np.median([v["source_centre"].numpy() for v in draws], 0)
        half = 4 * float(np.median([v["source_radius"] for v in draws]))
    axis = torch.linspace(-half, half, 120, dtype=torch.float64)
    y, x = torch.meshgrid(axis + float(centre[1]), axis + float(centre[0]), indexing="ij")
    with torch.no_grad():
        one = torch.ones(band + 1, dtype=x.dtype)
        lights = [v.get("source_amplitude", one)[band] * model.source_light(v, x, y) for v in draws]
    mean = torch.stack(lights).mean(0).numpy()
    return mean, (centre[0] - half, centre[0] + half, centre[1] - half, centre[1] + half)


def critical_lines(model: Any, values: Mapping[str, Tensor], data: Any) -> list[tuple[Line, Line]]:
    """Lines of infinite magnification, each as (x, y) in the image plane and in the source plane [arcsec]."""
    x, y, bx, by = _traced(model, values, data)
    step = x[0, 1] - x[0, 0]
    (xy, xx), (yy, yx) = np.gradient(bx, step), np.gradient(by, step)
    axis = plt.figure().gca()
    contours = axis.contour(x, y, xx * yy - xy * yx, levels=[0.0]).allsegs[0]
    plt.close(axis.figure)  # type: ignore[arg-type]
    lines = []
    for line in contours:
        if len(line) < 2 or np.ptp(line, 0).min() < 5 * step:  # the singular centre of a power law
            continue
        px, py = torch.as_tensor(line.T)
        ax, ay = model.deflection(values, px, py)
        lines.append((line.T, torch.stack((px - ax, py - ay)).numpy()))
    return lines


def count_images(model: Any, values: Mapping[str, Tensor], data: Any) -> int:
    """Images of the brightest point of the source: cells of the image plane that are mapped around it.

    The demagnified image at the centre of the lens is left out.
    """
    x, y, bx, by = _traced(model, values, data)
    if "source_centre" in values:
        point = values["source_centre"].numpy()
    else:
        light, edges = _source(model, [values], 0)
        row, column = np.unravel_index(light.argmax(), light.shape)
        point = np.array(
            [np.linspace(*edges[:2], light.shape[1])[column], np.linspace(*edges[2:], light.shape[0])[row]]
        )
    u, v = bx - point[0], by - point[1]
    corners = [(u[i:n, j:m], v[i:n, j:m]) for i, n, j, m in _TRIANGLE_CORNERS]
    count = 0
    centre = values.get("centre", torch.zeros(2)).numpy()
    far = np.hypot(x[:-1, :-1] - centre[0], y[:-1, :-1] - centre[1]) > 0.1 * float(values["einstein_radius"])
    for three in ((0, 1, 2), (1, 3, 2)):
        sides = [
            corners[a][0] * corners[b][1] - corners[b][0] * corners[a][1]
            for a, b in zip(three, (*three[1:], three[0]), strict=True)
        ]
        inside = np.all([s > 0 for s in sides], 0) | np.all([s < 0 for s in sides], 0)
        count += int((inside & far).sum())
    return count


_TRIANGLE_CORNERS: Any = ((0, -1, 0, -1), (0, -1, 1, None), (1, None, 0, -1), (1, None, 1, None))
"""Slices of the corners of cells: low, right, up, and diagonal."""


def _traced(model: Any, values: Mapping[str, Tensor], data: Any) -> tuple[np.ndarray, ...]:
    """A fine grid of the image plane, and where it is traced to [arcsec]."""
    ny, nx = (int(n) for n in data.image.shape[-2:])
    scale = data.pixel_scale * max(ny, nx) / _FINE
    x, y = imaging.pixel_grid((_FINE * ny // max(ny, nx), _FINE * nx // max(ny, nx)), scale)
    with torch.no_grad():
        ax, ay = model.deflection(values, x, y)
    return x.numpy(), y.numpy(), (x - ax).numpy(), (y - ay).numpy()
