"""Progress where standard error is not a terminal."""

from __future__ import annotations

import pytest

from astrozoo.infer import progress


def test_a_line_is_printed_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    now = 100.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    with progress.progress_bar("hmc", 50, True) as report:
        for done in range(1, 51):
            now += 1.0
            report(done, "warm-up" if done < 30 else "")
    assert capsys.readouterr().err.splitlines() == ["hmc: 20 of 50, 20 s, warm-up", "hmc: 40 of 50, 40 s"]
    with progress.progress_bar("hmc", 50, False) as report:
        now += 100.0
        report(50, "")
    assert capsys.readouterr().err == ""
