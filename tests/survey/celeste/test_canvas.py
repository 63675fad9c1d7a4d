"""Pixels and light of patches: the right pixels, all light accounted for."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from astrozoo.data.images import Field
from astrozoo.errors import InputError
from astrozoo.survey.celeste.canvas import Canvas, dispersion
from astrozoo.survey.partition import Sources

BANDS = ("u", "g", "r", "i", "z")


def test_a_patch_holds_the_pixels_around_its_source(located):
    field, sources, xy = located
    canvas = Canvas(field, sources, BANDS)
    rows = np.arange(3)
    patch = canvas.patches(rows, torch.zeros(()))
    for k, (x, y) in enumerate(xy):
        px = patch.pixels[k, 0].T.numpy() + np.array([x, y])
        np.testing.assert_allclose(px, np.rint(px), atol=1e-6)
        col, row = np.rint(px).astype(int).T
        ny, nx = field.images[0].shape
        inside = (col >= 0) & (col < nx) & (row >= 0) & (row < ny)
        assert not (patch.mask[k, 0].numpy()[~inside]).any()
        np.testing.assert_array_equal(
            patch.counts[k, 0].numpy()[inside], field.images[0].counts[row[inside], col[inside]]
        )
        np.testing.assert_array_equal(
            patch.mask[k, 0].numpy()[inside] > 0, field.images[0].valid[row[inside], col[inside]]
        )


def test_light_taken_out_and_painted_back_leaves_the_model_as_it_was(located):
    field, sources, _ = located
    canvas = Canvas(field, sources, BANDS)
    rows = np.array([0])
    light = torch.rand(1, len(field.images), 17 * 17, dtype=torch.float64)
    canvas.paint(np.array([2]), 2 * light)
    before = [m.clone() for m in canvas.model]
    canvas.paint(rows, light)
    with_own = canvas.patches(rows, torch.zeros(())).background
    without = canvas.patches(rows, light).background
    torch.testing.assert_close(with_own - without, light)
    canvas.paint(rows, -light)
    for now, then in zip(canvas.model, before, strict=True):
        torch.testing.assert_close(now, then)


def test_news_of_pixels_reach_the_patches_that_hold_them(located):
    field, sources, _ = located
    canvas, here, there = Canvas(field, sources, BANDS), np.array([0]), np.array([2])
    news = torch.rand(1, len(field.images), 17 * 17, dtype=torch.float64)
    for _ in range(2):  # nothing is left of it
        ((some, felt),) = canvas.felt(here, news, [there])
        assert some is there
        for k in range(len(field.images)):
            apart = np.round(sources.xy[k, 2]).astype(int) - np.round(sources.xy[k, 0]).astype(int)
            expected = torch.zeros(17, 17, dtype=torch.float64)
            square = news[0, k].reshape(17, 17)
            for y in range(17):
                for x in range(17):
                    if 0 <= y + apart[1] < 17 and 0 <= x + apart[0] < 17:
                        expected[y, x] = square[y + apart[1], x + apart[0]]
            assert expected.any()
            torch.testing.assert_close(felt[0, k].reshape(17, 17), expected)


@pytest.mark.parametrize(
    ("what", "value"),
    [("counts", np.nan), ("counts", np.inf), ("sky", np.nan), ("sky", np.inf), ("sky", -1.0)],
)
def test_pixels_that_are_no_numbers_are_refused_unless_masked(simulated_field, what, value):
    image = simulated_field.images[0]
    broken = getattr(image, what).copy()
    broken[10, 12] = value
    valid = image.valid.copy()
    ra, dec = image.wcs.all_pix2world([[12.0, 10.0]], 0).T
    field = Field((replace(image, **{what: broken}),))
    sources = Sources.locate(field, ra, dec, np.array([8]))
    with pytest.raises(InputError, match="1 valid pixels"):
        Canvas(field, sources, BANDS)
    valid[10, 12] = False
    field = Field((replace(image, valid=valid, **{what: broken}),))
    canvas = Canvas(field, sources, BANDS)
    patch = canvas.patches(np.array([0]), torch.zeros((), dtype=torch.float64))
    assert float(patch.mask[0, 0, 17 * 8 + 8]) == 0
    assert all(torch.isfinite(t).all() for t in (patch.counts, patch.background, patch.mask))
    assert (patch.background > 0).all()


def test_bright_pixels_are_over_dispersed():
    counts, sky = torch.tensor([100.0, 10_100.0]), torch.tensor([100.0, 100.0])
    got = dispersion(counts, sky)
    assert float(got[0]) == 1
    assert float(got[1]) == pytest.approx(1 + (0.04 * 10_000) ** 2 / 10_100)


def test_a_source_outside_one_image_has_no_pixels_there(located):
    field, _, _ = located
    ny, nx = field.images[0].shape
    for x, y in ((-9.0, ny / 2), (nx + 8.4, ny / 2), (nx / 2, -200.0), (nx + 90.0, ny + 90.0)):
        inside = field.images[0].wcs.all_pix2world([[nx / 2, ny / 2]], 0)[0]
        sources = Sources.locate(field, inside[:1], inside[1:], np.array([8]))
        moved = replace(sources, xy=np.broadcast_to([x, y], sources.xy.shape).copy())
        assert not Canvas(field, moved, BANDS).patches(np.array([0]), torch.zeros(())).mask.any()
