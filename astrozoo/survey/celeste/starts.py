"""What a fit of a field begins with, if an earlier fit of the same sources is known."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from astrozoo.survey.celeste.modes import KINDS, Modes

__all__ = ["Starts"]


class Starts(NamedTuple):
    """Modes of both types of every source, their log evidences, and what was found out about the sources.

    Attributes:
        galaxy, star: modes.
        evidence: log evidence as a galaxy and as a star.
        half: half size of each patch [px].
        outgrown, double, examined: marks of sources, see :class:`astrozoo.survey.celeste.modes.Modes`.
    """

    galaxy: Float[np.ndarray, "s d"]
    star: Float[np.ndarray, "s e"]
    evidence: Float[np.ndarray, "s 2"]
    half: Int[np.ndarray, "s"]
    outgrown: Bool[np.ndarray, "s"]
    double: Bool[np.ndarray, "s"]
    examined: Bool[np.ndarray, "s"]

    @classmethod
    def of(cls, job: Modes) -> Starts:
        """Those of a fit as it stands."""
        state = job.state
        return cls(
            state.mode["galaxy"].numpy(),
            state.mode["star"].numpy(),
            np.stack([state.evidence[name].numpy() for name, _, _ in KINDS], -1),
            job.sources.half,
            state.outgrown,
            state.double,
            state.examined,
        )

    @classmethod
    def read(cls, arrays: Mapping[str, np.ndarray]) -> Starts:
        """From arrays of these names."""
        return cls(*(arrays[name] for name in cls._fields))

    def give(self, job: Modes) -> None:
        """Begin a fit of the same sources, in the same order, with these modes, and paint their light.

        The type of a source that the earlier fit has ruled out stays so.
        """
        state = job.state
        for k, (name, _, _) in enumerate(KINDS):
            state.mode[name] = torch.from_numpy(np.array(getattr(self, name), float))
            state.evidence[name] = torch.from_numpy(np.array(self.evidence[:, k], float))
        for mark in ("outgrown", "double", "examined"):
            getattr(state, mark)[:] = getattr(self, mark)
        job.type_known[:] = True
        job.resize(np.maximum(self.half, job.sources.half))
        job.repaint(np.arange(len(job.sources)))
