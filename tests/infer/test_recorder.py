"""Draws that are thinned, kept of some sites, summarised as they come, or streamed to disk."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from astrozoo.errors import DataError, InputError
from astrozoo.infer import recorder
from astrozoo.infer.recorder import STATISTICS, DrawsOnDisk, Recorder, Summary, open_draws

F64 = torch.float64


def _constrain(z, first):
    return {"a": z[..., :1].exp(), "b/c": z[..., 1:]}


def _positions(draws=40, problems=1, chains=3, d=4):
    return torch.randn(draws, problems, chains, d, generator=torch.Generator().manual_seed(0), dtype=F64)


def _recorded(positions, monkeypatch, at_once=50, **options):
    monkeypatch.setattr(recorder, "AT_ONCE", at_once)
    n, b, c, d = positions.shape
    made = Recorder(_constrain, b, c, n, d, b > 1, **options)
    for position in positions:
        made.add(position)
    return made


def test_kept_draws_are_all_draws_whatever_the_parts(monkeypatch):
    positions = _positions()
    whole = positions[:, 0].movedim(0, 1).numpy()
    for at_once in (1, 50, 10**9):
        fields = _recorded(positions, monkeypatch, at_once).finished(positions[-1])
        np.testing.assert_array_equal(fields["draws"]["b/c"], whole[..., 1:])
        flat = positions[:, 0].flatten(0, 1)
        torch.testing.assert_close(fields["covariance"][0], flat.T.cov())
        torch.testing.assert_close(fields["location"][0], flat.mean(0))


def test_buffer_and_kept_draws_are_allocated_once(monkeypatch):
    positions = _positions()
    monkeypatch.setattr(recorder, "AT_ONCE", 24)  # two draws
    made = Recorder(_constrain, 1, 3, 40, 4, False)
    addresses = set()
    for position in positions:
        made.add(position)
        if made.stored:
            addresses.add((made.buffer.data_ptr(), *(x.ctypes.data for x in made.kept.values())))
    assert made.count == made.kept_count == 40
    assert len(addresses) == 1


def test_thinned_draws_and_chosen_sites(monkeypatch):
    positions = _positions(draws=41)
    fields = _recorded(positions, monkeypatch, thin=7, keep=("a",)).finished(positions[-1])
    assert fields["draws"].keys() == {"a"}
    expected = positions[::7, 0, :, :1].movedim(0, 1).exp()
    np.testing.assert_array_equal(fields["draws"]["a"], expected)
    torch.testing.assert_close(fields["location"][0], positions[:, 0].flatten(0, 1).mean(0))  # of all draws
    with pytest.raises(InputError, match="'d'"):
        _recorded(positions, monkeypatch, keep=("d",)).finished(positions[-1])


def test_split_r_hat_is_that_of_all_draws(monkeypatch):
    positions = _positions(problems=2)
    made = _recorded(positions, monkeypatch, keep=())
    made.store()
    z = positions.movedim(0, 2)
    parts = torch.cat((z[:, :, :20], z[:, :, 20:]), 1)
    expected = (1 - 1 / 20 + parts.mean(2).var(1) / parts.var(2).mean(1)).sqrt()
    torch.testing.assert_close(made.split_r_hat(), expected)


@pytest.mark.parametrize("scale", [1.0, 1e3])
def test_a_summary_is_that_of_all_draws(scale):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3000, 5, generator=generator, dtype=F64) * scale
    x[:, 1] = x[:, 1].abs() + 7 * scale  # skewed
    x[:, 2] = 2.0  # constant
    x[1500:, 3] += 60 * scale  # far from where the first draws were
    summary = Summary(5)
    for part in x.split(16):
        summary.add(part)
    found = dict(zip(STATISTICS, summary.values(), strict=True))
    np.testing.assert_allclose(found["mean"], x.mean(0), atol=1e-12 * scale, rtol=1e-12)
    np.testing.assert_allclose(found["sd"], x.std(0), rtol=1e-10, atol=1e-9)
    bin_width = 2 * np.ptp(x.numpy(), axis=0) / 100
    for name, q in (("5%", 0.05), ("50%", 0.5), ("95%", 0.95)):
        error = np.abs(found[name] - np.quantile(x, q, axis=0))
        assert (error[[0, 1, 2, 4]] <= bin_width[[0, 1, 2, 4]] + 1e-9).all(), name
    # A gap between two modes has no density: a median is anywhere in it.
    assert x[:1500, 3].max() - bin_width[3] <= found["50%"][3] <= x[1500:, 3].min() + bin_width[3]


def test_a_killed_run_leaves_what_it_streamed_and_goes_on(monkeypatch, tmp_path):
    positions = _positions()
    whole = _recorded(positions, monkeypatch, thin=3, summarise=True).finished(positions[-1])
    header = {"digest": "x"}
    first = _recorded(positions[:25], monkeypatch, thin=3, disk=DrawsOnDisk(tmp_path, header), summarise=True)
    first.draws = 40
    first.store()
    # It was made for 25 draws in all, so its files are too short, and are made anew when it goes on.
    again = Recorder(
        _constrain, 1, 3, 40, 4, False, thin=3, summarise=True, disk=DrawsOnDisk(tmp_path, header)
    )
    for position in positions[:17]:
        again.add(position)
    saved = again.arrays()
    for position in positions[17:25]:
        again.add(position)
    again.store()
    left = open_draws(tmp_path)
    np.testing.assert_array_equal(left["b/c"], whole["draws"]["b/c"][:, :9])
    assert isinstance(left["b/c"], np.memmap)
    rest = Recorder(
        _constrain, 1, 3, 40, 4, False, thin=3, summarise=True, disk=DrawsOnDisk(tmp_path, header)
    )
    rest.restore(saved)
    for position in positions[17:]:
        rest.add(position)
    fields = rest.finished(positions[-1])
    np.testing.assert_array_equal(fields["draws"]["b/c"], whole["draws"]["b/c"])
    np.testing.assert_allclose(fields["summaries"]["a"], whole["summaries"]["a"], rtol=0.2)
    np.testing.assert_allclose(fields["summaries"]["a"][:2], whole["summaries"]["a"][:2], rtol=1e-12)
    with pytest.raises(InputError, match="digest x, expected digest y"):
        DrawsOnDisk(tmp_path, {"digest": "y"})
    with pytest.raises(DataError):
        open_draws(tmp_path / "none")
