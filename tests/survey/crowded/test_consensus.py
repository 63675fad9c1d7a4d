"""The consensus of catalogues."""

import numpy as np
import pytest

from astrozoo.errors import InputError
from astrozoo.survey.crowded.consensus import consensus
from astrozoo.survey.crowded.samples import Samples


def _samples(catalogues, chains, flux=None):
    """Samples of one band from lists of (x, y, flux) per catalogue; all are stars."""
    length = len(catalogues) // chains
    rows = [np.asarray(c, float).reshape(-1, 3) for c in catalogues]
    number = np.repeat(np.arange(len(rows)), [len(c) for c in rows])
    table = np.concatenate(rows)
    return Samples(
        chain=number // length,
        sample=number % length,
        xy=table[:, :2],
        flux=table[:, 2:],
        shape=np.full((len(table), 3), np.nan),
        bands=("r",),
        reference=0,
        sky=np.zeros((chains, length, 1, 3)),
        tally={},
    )


def _draw(rng, places, chance, clutter):
    """A catalogue: each place with its chance, and sources anywhere."""
    present = rng.random(len(places)) < chance
    sure = np.column_stack([places + 0.1 * rng.standard_normal(places.shape), np.full(len(places), 10.0)])
    n = rng.poisson(clutter)
    anywhere = np.column_stack([rng.uniform(0, 20, (n, 2)), 10 ** rng.uniform(0, 0.3, n)])
    return np.concatenate([sure[present], anywhere])


def test_sources_and_their_probabilities():
    rng = np.random.default_rng(0)
    places = np.array([[3.0, 4.0], [10.0, 11.0], [15.0, 3.0]])
    chance = np.array([1.0, 0.7, 0.1])
    table = consensus(_samples([_draw(rng, places, chance, 0) for _ in range(400)], 4))
    np.testing.assert_allclose(table["p_exists"], [1.0, 0.7], atol=0.08)
    np.testing.assert_allclose(np.column_stack([table["x"], table["y"]]), places[:2], atol=0.05)
    np.testing.assert_allclose(table["x_sd"], 0.1, atol=0.02)
    assert (table["p_star"] == 1).all()
    assert np.isnan(table["half_light_radius"]).all()


def test_each_row_is_used_once():
    """Two stars .4 px apart in every catalogue are two sources, although each matches the other."""
    catalogue = [(5.0, 5.0, 10.0), (5.4, 5.0, 10.0)]
    table = consensus(_samples([catalogue] * 8, 2))
    np.testing.assert_array_equal(table["members"], [8, 8])
    np.testing.assert_allclose(np.sort(table["x"]), [5.0, 5.4])


def test_quantiles_and_galaxies():
    rng = np.random.default_rng(1)
    flux = np.exp(0.1 * rng.standard_normal(1000))
    samples = _samples([[(5.0, 5.0, f)] for f in flux], 4)
    samples.shape[:250] = (2.0, 0.3, 0.0)
    row = consensus(samples)[0]
    wanted = np.quantile(flux, [0.025, 0.16, 0.84, 0.975])
    np.testing.assert_allclose([row[f"flux_r_{q}"] for q in ("q025", "q16", "q84", "q975")], wanted)
    assert row["p_star"] == 0.75
    assert row["half_light_radius"] == pytest.approx(2)


@pytest.mark.parametrize("chains", [1, 4])
def test_probability_is_that_of_a_catalogue_that_took_no_part(chains):
    """In clutter without any true place, the share of confirming samples exceeds that of new catalogues."""
    rng = np.random.default_rng(2)
    nowhere = np.empty((0, 2))
    stated, seen, naive = [], [], []
    for _ in range(4):
        samples = _samples([_draw(rng, nowhere, np.empty(0), 100) for _ in range(16)], chains)
        table = consensus(samples, threshold=0.01)[:80]
        x, y, m = (np.asarray(table[name])[:, None] for name in ("x", "y", "flux_r"))
        m = -2.5 * np.log10(m)
        for _ in range(20):
            other_x, other_y, flux = _draw(rng, nowhere, np.empty(0), 100).T
            near = np.maximum(np.abs(x - other_x), np.abs(y - other_y)) < 0.5
            seen.append((near & (np.abs(m + 2.5 * np.log10(flux)) < 0.5)).any(1).mean())
        stated.append(table["p_exists"].mean())
        naive.append(table["members"].mean() / 16)
    assert np.mean(naive) > np.mean(seen) + 0.1
    assert np.mean(stated) == pytest.approx(np.mean(seen), abs=0.05)


def test_bad_threshold():
    with pytest.raises(InputError, match="threshold"):
        consensus(_samples([[(1, 1, 1)]], 1), threshold=1.0)


def test_no_sources():
    assert len(consensus(_samples([[]] * 4, 2))) == 0
