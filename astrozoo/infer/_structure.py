"""The structure of a metric from the option ``metric`` of a user."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from astrozoo._layout import Layout, Site
from astrozoo.errors import InputError, UnknownNameError
from astrozoo.infer._metric import KINDS, Block, Structure
from astrozoo.types import DENSE_COVARIANCE, Problem

__all__ = ["structure_for", "structure_of"]


def structure_for(problem: Problem, metric: Any, layout: Layout) -> Structure:
    """The structure of ``metric``, or if that is None, of the problem's ``preconditioner``.

    Raises:
        InputError, UnknownNameError: as :func:`structure_of`.
    """
    if metric is not None:
        return structure_of(metric, layout)
    return structure_of(problem.preconditioner, layout, "preconditioner of the problem")


def structure_of(metric: Any, layout: Layout, option: str = "metric") -> Structure:
    """The structure that ``metric`` asks for.

    Args:
        metric: None; the kind of a metric over all latents ("dense", "low_rank", "diagonal"); kinds by site,
            "fourier" and "fourier_3d" among them; or a :class:`~astrozoo.infer._operators.Preconditioner`.
            Sites that are not named have metrics of the default kind.
        layout: of the latent sites.
        option: what an error calls ``metric``.

    Raises:
        InputError: for a kind that is unknown or does not suit its site, or an object that is no
            preconditioner.
        UnknownNameError: for a site that the model has not.
    """
    if metric is None:
        return Structure()
    if isinstance(metric, str):
        return Structure((_block(layout.dim, metric, None, option),))
    if isinstance(metric, Mapping):
        return _by_site(metric, layout, option)
    missing = [n for n in ("velocity", "force", "whiten", "log_det") if not _has(metric, n)]
    if missing:
        raise InputError(
            option,
            f"{type(metric).__name__} without {', '.join(missing)}",
            "a kind, a mapping of sites to kinds, or an object with velocity, force, whiten and log_det",
        )
    return Structure(outer=metric)


def _has(metric: Any, name: str) -> bool:
    return inspect.getattr_static(metric, name, None) is not None


def _by_site(kinds: Mapping[str, str], layout: Layout, option: str) -> Structure:
    names = {site.name for site in layout.sites}
    for name in kinds:
        if name not in names:
            raise UnknownNameError(f"site of {option}", name, names)
    blocks: list[Block] = []
    unnamed = 0  # latents of neighbouring sites without a kind of their own
    for site in layout.sites:
        size = site.stop - site.start
        if site.name not in kinds:
            unnamed += size
            continue
        blocks += [Block(unnamed)] if unnamed else []
        unnamed = 0
        blocks.append(_block(size, kinds[site.name], site, option))
    blocks += [Block(unnamed)] if unnamed else []
    return Structure(tuple(blocks))


def _block(size: int, kind: str, site: Site | None, option: str) -> Block:
    where = option if site is None else f"{option}, site {site.name!r}"
    if kind not in KINDS:
        raise InputError(where, repr(kind), ", ".join(map(repr, KINDS)))
    if kind == "dense" and size > DENSE_COVARIANCE:
        raise InputError(where, f"'dense' of {size} latents", f"it for at most {DENSE_COVARIANCE}")
    if not kind.startswith("fourier"):
        return Block(size, kind)
    shape = () if site is None else site.unconstrained_shape
    if kind == "fourier_3d":
        if len(shape) < 3:
            raise InputError(
                where, "'fourier_3d'", "it for a site with three grid axes: {site: 'fourier_3d'}"
            )
        return Block(size, "fourier", tuple(shape[-3:]))
    if not shape:
        raise InputError(where, "'fourier'", "it for a site with one or two grid axes: {site: 'fourier'}")
    return Block(size, kind, tuple(shape[-2:]))
