"""Cells of large patches: they tile the patch, and a source's light is the same in cells as in pixels."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from astrozoo.survey.celeste.canvas import Canvas
from astrozoo.survey.celeste.cells import cell_means, cells, count_cells, offsets
from astrozoo.survey.partition import HALF_SIZES, LARGE_HALF_SIZES

BANDS = ("u", "g", "r", "i", "z")


@pytest.mark.parametrize("half", LARGE_HALF_SIZES)
def test_cells_are_whole_squares_that_grow_outwards(half):
    cell = cells(half)
    size = torch.bincount(cell)
    assert count_cells(half) == len(size) < (2 * HALF_SIZES[-1] + 1) ** 2
    assert set(size.tolist()) <= {1, 9, 81}
    centre = cell_means(offsets(half).double(), torch.ones(2, len(cell), dtype=torch.float64), cell)
    apart = (offsets(half) - centre[:, cell]).abs().amax(0)
    np.testing.assert_allclose(apart.amax(), (size.sqrt().amax() - 1) / 2)
    assert (size[centre.abs().amax(0) <= 22] == 1).all()


def test_small_patches_have_no_cells():
    assert cells(HALF_SIZES[-1]) is None
    assert count_cells(8) == 17 * 17


def test_masked_pixels_do_not_count_in_a_cell():
    cell = torch.tensor([0, 0, 1, 1])
    values, weight = torch.tensor([1.0, 5.0, 2.0, 4.0]), torch.tensor([1.0, 0.0, 0.0, 0.0])
    torch.testing.assert_close(cell_means(values, weight, cell), torch.tensor([1.0, 3.0]))


def test_a_large_patch_has_the_sums_of_its_pixels(located):
    field, sources, _ = located
    large = replace(sources, half=np.full(len(sources), LARGE_HALF_SIZES[0]))
    canvas, row = Canvas(field, large, BANDS), np.array([0])
    light = torch.rand(1, len(field.images), (2 * LARGE_HALF_SIZES[0] + 1) ** 2, dtype=torch.float64)
    canvas.paint(row, light)
    patch = canvas.patches(row, canvas.in_cells(row, light))
    # of its own light, which is painted pixel by pixel, nothing is left in the background
    seen = patch.mask > 0
    torch.testing.assert_close(patch.background[seen], canvas.gather(canvas.sky, row)[seen])
    for k, image in enumerate(field):
        assert float((patch.mask * patch.counts)[0, k].sum()) == pytest.approx(
            float((canvas.weight[k] * canvas.counts[k]).sum())
        )
        assert 0 < float(patch.mask[0, k].sum()) <= image.valid.sum()
