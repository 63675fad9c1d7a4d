"""Random streams of seeds."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from astrozoo.errors import InputError
from astrozoo.infer.randomness import generator_for

NUMBERS = (0, 1, 5, 2**31, 2**32, 2**32 + 5, 2**64 + 5)


def test_every_tuple_has_a_stream_of_its_own():
    tuples = [t for n in (1, 2, 3, 4) for t in itertools.product(NUMBERS, repeat=n)]
    tuples += [(0,) * n for n in range(5, 9)] + [(i, 7) for i in range(2, 5000) if i != 5]
    first = {tuple(torch.rand(3, generator=generator_for(*t), dtype=torch.float64).tolist()) for t in tuples}
    assert len(first) == len(tuples)


def test_seeds_that_differ_above_32_bits_have_other_draws():
    seeds = [int(generator_for(i).initial_seed()) for i in range(100)]
    assert len(set(seeds)) == len(seeds)
    first, second = (torch.randn(10, generator=generator_for(s)) for s in (3, 3 + 2**40))
    assert not torch.equal(first, second)


def test_a_stream_is_the_same_each_time_and_uniform():
    draws = [torch.rand(20_000, generator=generator_for(np.int64(3), 1), dtype=torch.float64) for _ in "ab"]
    assert torch.equal(*draws)
    assert torch.equal(draws[0], torch.rand(20_000, generator=generator_for(3, 1), dtype=torch.float64))
    assert abs(draws[0].mean() - 0.5) < 4 * (1 / 12 / 20_000) ** 0.5
    assert torch.histc(draws[0], 20, 0, 1).sub(1000).abs().max() < 5 * 1000**0.5


@pytest.mark.parametrize("numbers", [(-1,), (0, -1), (0.5,), (0, "a"), (None,)])
def test_a_negative_or_broken_number_is_refused(numbers):
    with pytest.raises(InputError, match="seed or stream: got"):
        generator_for(*numbers)
