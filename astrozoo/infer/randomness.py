"""Random numbers of a run: one stream per seed, purpose and iteration, the same on every device."""

from __future__ import annotations

import hashlib
import operator

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from astrozoo.errors import InputError
from astrozoo.objective import Objective

__all__ = ["generator_for", "noise_for"]


_MERSENNE_WORDS = slice(3, 3 + 624)
"""Where the 624 words of the Mersenne Twister lie in the state of a CPU generator, in units of 8 bytes."""


def generator_for(seed: int, *stream: int) -> torch.Generator:
    """A CPU generator for one stream (iteration, chain, purpose ...) of a seed.

    Different tuples ``(seed, *stream)`` give different streams, of whatever length and size they are.
    The whole state of the generator is set, because ``manual_seed`` of a CPU generator uses 32 bits only.

    Raises:
        InputError: if a number is negative or not whole.
    """
    for number in (seed, *stream):
        if not hasattr(number, "__index__") or operator.index(number) < 0:
            raise InputError("seed or stream", repr(number), "whole numbers that are not negative")
    label = ",".join(str(operator.index(number)) for number in (seed, *stream))
    entropy = np.random.SeedSequence(int.from_bytes(hashlib.sha256(label.encode()).digest(), "little"))
    generator = torch.Generator().manual_seed(int(entropy.generate_state(1, np.uint64)[0]) >> 1)
    state = generator.get_state()
    state.view(torch.int64)[_MERSENNE_WORDS] = torch.from_numpy(entropy.generate_state(624).astype(np.int64))
    return generator.set_state(state)


def noise_for(
    seed: int, *stream: int, draws: int, like: Objective, matched: bool = False
) -> Float[Tensor, "m e"] | None:
    """Standard normals in antithetic pairs, the same on every device; None for an objective without noise.

    Half are the others negated (an odd number is rounded up), so that what is odd in the noise, such as the
    gradient of a guide's location under a nearly normal posterior, averages out. ``matched`` draws have a
    covariance of exactly 1 where there are as many pairs as coordinates (the ELBO of a normal posterior is
    then exact), else mean squares of exactly 1: a bias of order 1 / draws for the much greater noise.
    """
    if like.noise_dim == 0:
        return None
    shape = ((draws + 1) // 2, like.noise_dim)
    e = torch.randn(shape, generator=generator_for(seed, *stream), dtype=like.dtype).to(like.device)
    if matched and len(e) >= e.shape[1]:
        Q, R = torch.linalg.qr(e)
        e = Q * R.diagonal().sign() * len(e) ** 0.5
    elif matched:
        e = e / e.square().mean(0).sqrt()
    return torch.cat((e, -e))
