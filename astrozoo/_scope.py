"""State of the process that running a model needs. It is set temporarily, by one thread at a time.

All threads share torch's default dtype and global generator, Pyro's stack of handlers and its validation
flag, and the function of ``torch.distributions`` that draws standard normals. All code that sets or reads
them runs under one lock. Compiled graphs need none of them and run in parallel.
"""

from __future__ import annotations

import math
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import pyro
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import lowrank_multivariate_normal, multivariate_normal, normal

from astrozoo._parameters import empty_store

__all__ = ["Scope", "Tape", "Weight", "computing"]

_STATE = threading.RLock()
"""Locked while the state of the process is changed. It is re-entrant, so that fits can be nested."""


@contextmanager
def computing(dtype: torch.dtype, seed: int | None = None) -> Iterator[None]:
    """Inside this context no other thread runs Pyro or uncompiled graphs, and the default dtype is ``dtype``.

    Args:
        dtype: the default dtype.
        seed: seed of torch's global CPU generator, for code that draws from it. The generator's state is
            restored afterwards. None does not touch the generator.
    """
    with _STATE, torch.random.fork_rng(devices=[]) if seed is not None else nullcontext():
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        if seed is not None:
            torch.manual_seed(seed)
        try:
            yield
        finally:
            torch.set_default_dtype(before)


class Weight(Messenger):
    """Multiplies the log probabilities of all sites in plates, by a factor for each plate.

    Args:
        factors: by plate.
        outside: factor of the sites that are in none of these plates.
    """

    def __init__(self, factors: Mapping[str, float], outside: float = 1.0) -> None:
        super().__init__()
        self.factors, self.outside = factors, outside

    def _pyro_sample(self, msg: Any) -> None:
        found = [self.factors[f.name] for f in msg["cond_indep_stack"] if f.name in self.factors]
        msg["scale"] = msg["scale"] * (math.prod(found) if found else self.outside)


@dataclass(frozen=True)
class Scope:
    """The settings while a model runs: dtype and device of the problem, and Pyro's validation off.

    Pyro's checks are control flow on data, which a graph cannot contain. Parameters of distributions that are
    Python numbers become tensors of the default dtype, which must therefore be that of the problem. Only one
    thread at a time is in a scope.
    """

    dtype: torch.dtype
    device: torch.device
    weights: Mapping[str, float] = field(default_factory=dict)
    """Factors of the log probabilities of all sites in a plate, by plate."""

    @contextmanager
    def __call__(self) -> Iterator[None]:
        with (
            computing(self.dtype),
            pyro.validation_enabled(False),
            pyro.settings.context(module_local_params=False),
            empty_store(),
            warnings.catch_warnings(),
            torch.device(self.device) if self.device.type != "cpu" else nullcontext(),
            Weight(self.weights) if self.weights else nullcontext(),
        ):
            # A warning of pyro.module: a weight that requires no gradients is a constant here too.
            warnings.filterwarnings("ignore", ".*not registered in the param store", UserWarning)
            yield

    @contextmanager
    def drawing(self, seed: int = 0) -> Iterator[None]:
        """The same scope, with seeded global generators, whose state is restored afterwards."""
        devices = [self.device] if self.device.type == "cuda" else []
        with self(), torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            yield

    def generator_state(self) -> Tensor:
        """State of the global generator that distributions draw from."""
        return torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else torch.get_rng_state()


class Tape:
    """Replaces the standard normals of ``torch.distributions`` by the elements of a vector, in order.

    Without a vector, it draws the normals and counts them.
    """

    _name = "_standard_normal"
    _modules = (normal, multivariate_normal, lowrank_multivariate_normal)

    def __init__(self, noise: Tensor | None = None) -> None:
        self.noise, self.used = noise, 0
        self._generators: dict[torch.device, torch.Generator] = {}

    def __call__(self, shape: Any, dtype: torch.dtype, device: torch.device) -> Tensor:
        size = math.prod(shape)
        start, self.used = self.used, self.used + size
        if self.noise is not None:
            return self.noise[start : self.used].reshape(shape).to(dtype)
        device = torch.device(device)
        generator = self._generators.setdefault(device, torch.Generator(device).manual_seed(1))
        return torch.randn(tuple(shape), dtype=dtype, device=device, generator=generator)

    @contextmanager
    def playing(self) -> Iterator[None]:
        """Inside this context normal distributions draw from the tape. One thread at a time is in it."""
        with _STATE:
            before = [getattr(m, self._name) for m in self._modules]
            try:
                for m in self._modules:
                    setattr(m, self._name, self)
                yield
            finally:
                for m, original in zip(self._modules, before, strict=True):
                    setattr(m, self._name, original)
