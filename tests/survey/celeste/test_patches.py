"""A box of a field as the data of one problem."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from astropy.table import Table

import astrozoo
from astrozoo.data.images import Field, crop
from astrozoo.data.simulate import draw_sources, simulate_field
from astrozoo.density import log_density
from astrozoo.errors import InputError
from astrozoo.models.celeste import star_images
from astrozoo.survey.celeste import patches


@pytest.fixture(scope="module")
def scene() -> tuple[Field, Table]:
    """Two stars of r = 17 to 18 in 41x41 pixels of five bands."""
    stars = draw_sources(2, np.random.default_rng(4), r_range=(17, 18))
    stars["is_star"] = True
    stars["x"], stars["y"] = [12.2, 27.7], [15.1, 24.6]
    return simulate_field(sources=stars, seed=4, shape=(41, 41))


def test_an_entry_reads_a_box_that_its_problem_takes(scene, monkeypatch) -> None:
    images, truth = scene
    monkeypatch.setattr(patches, "read_field", lambda path: images)
    entry = astrozoo.get("celeste")
    patch = entry.read(Path("folder"), box="0:41,0:41")
    assert patch.anchor.shape == (len(truth), 2)
    density = log_density(entry.problem(patch), compile="never")
    z = density.initial(1, torch.Generator().manual_seed(0))
    value, gradient = density.value_and_grad(z)
    assert value.isfinite().all()
    assert gradient.isfinite().all()


def test_sources_are_drawn_where_the_pixels_have_them(scene) -> None:
    """Stars painted at the anchors with the true fluxes leave noise in every band."""
    images, truth = scene
    patch = patches.patch_of(images)
    order = [int(np.argmin(np.abs(truth["ra"] - ra))) for ra in _sky(images, patch.anchor)]
    assert sorted(order) == [0, 1]
    light = torch.zeros_like(patch.counts)
    shapes = star_images(patch, patch.anchor)
    for k, row in enumerate(order):
        flux = torch.tensor([float(truth[f"flux_{image.band}"][row]) for image in images])
        light += (patch.calibration * flux)[:, None] * shapes[k]
    rate = patch.background + light
    used = patch.mask > 0
    chi2 = (patch.mask * (patch.counts - rate) ** 2 / rate)[used].mean()
    alone = (patch.mask * (patch.counts - patch.background) ** 2 / patch.background)[used].mean()
    assert chi2 < 1.3
    assert alone > 2 * chi2


def _sky(images: Field, anchor: torch.Tensor) -> np.ndarray:
    reference = images.images[2]
    ny, nx = reference.shape
    ra, dec = reference.wcs.all_pix2world((nx - 1) / 2, (ny - 1) / 2, 0)
    return ra + anchor[:, 0].numpy() / 3600 / np.cos(np.deg2rad(dec))


@pytest.mark.parametrize(
    ("box", "message"),
    [
        (None, r"box: got none \(a whole field\), expected .* at most 81x81 .*astrozoo run celeste"),
        ("0:256,0:256", "got 256x256 pixels"),
        ("3", "row:row,column:column"),
    ],
)
def test_more_than_a_patch_is_refused_before_files_are_read(box: str | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        astrozoo.get("celeste").read("nowhere", box=box)


def test_boxes_without_a_source_or_with_too_many_are_refused(scene, monkeypatch) -> None:
    images, _ = scene
    monkeypatch.setattr(patches, "MAX_SOURCES", 1)
    with pytest.raises(InputError, match="2 detected sources, expected between 1 and 1"):
        patches.patch_of(images)
    empty = crop(images, slice(0, 9), slice(0, 9))
    with pytest.raises(InputError, match="0 detected sources"):
        patches.patch_of(empty)
