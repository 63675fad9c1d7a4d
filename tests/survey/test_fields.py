"""Boxes that are read, and what a fingerprint depends on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from astrozoo.data.images import Field, GaussianMixture
from astrozoo.data.psf import MixturePsf
from astrozoo.errors import InputError
from astrozoo.survey.fields import fingerprint, read_box


@pytest.mark.parametrize("text", ["", "3:5", "5:3,0:9", "a:b,c:d", "0:10,5:5", "-3:5,0:9"])
def test_a_box_is_rows_and_columns(text: str) -> None:
    with pytest.raises(InputError, match="box"):
        read_box(text)


def test_a_box_is_read() -> None:
    assert read_box("300:556, 1400:1656") == (slice(300, 556), slice(1400, 1656))


def test_a_fingerprint_is_of_all_that_matters(simulated_field: Field) -> None:
    image = simulated_field.images[0]

    def of(changed: dict[str, Any], *settings: object) -> str:
        return fingerprint(Field((replace(image, **changed),)), *settings)

    counts, valid, wcs = image.counts.copy(), image.valid.copy(), image.wcs.deepcopy()
    counts[3, 4] += 1
    valid[3, 4] = False
    wcs.wcs.crval = [150.0, 2.0001]
    round_psf = MixturePsf(GaussianMixture(np.ones(1), np.zeros((1, 2)), 2 * np.eye(2)[None]))
    reshaped = {
        k: getattr(image, k).reshape(32, 128) for k in ("counts", "sky", "calibration", "valid", "saturated")
    }
    keys = [
        of({}, 1, 2512), of({}, 12, 512), of({}, np.zeros(2), np.zeros(1)), of({}, np.zeros(1), np.zeros(2)),
        of({"counts": counts}, 1, 2512), of({"valid": valid}, 1, 2512), of({"band": "g"}, 1, 2512),
        of({"wcs": wcs}, 1, 2512), of({"psf": round_psf}, 1, 2512),
        of(reshaped, 1, 2512),
    ]  # fmt: skip
    assert keys[0] == of({}, 1, 2512)
    assert len(set(keys)) == len(keys)
