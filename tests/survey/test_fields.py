"""Boxes that are read, and pixels that are checked."""

from __future__ import annotations

import pytest

from astrozoo.errors import InputError
from astrozoo.survey.fields import read_box


@pytest.mark.parametrize("text", ["", "3:5", "5:3,0:9", "a:b,c:d", "0:10,5:5", "-3:5,0:9"])
def test_a_box_is_rows_and_columns(text: str) -> None:
    with pytest.raises(InputError, match="box"):
        read_box(text)


def test_a_box_is_read() -> None:
    assert read_box("300:556, 1400:1656") == (slice(300, 556), slice(1400, 1656))
