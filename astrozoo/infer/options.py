"""What a user may ask of a run: options that every method takes, and the settings of each method.

:func:`parse` sorts the keyword arguments of :func:`astrozoo.infer.infer` into a :class:`RunOptions` and the
settings of one method, and checks every value by type and range before any work. Importing this file imports
no torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from astrozoo import registry
from astrozoo.errors import InputError, UnknownNameError

if TYPE_CHECKING:
    from astrozoo._comm import Comm

__all__ = [
    "AnnealedSettings",
    "AutoSettings",
    "El2oSettings",
    "HMCSettings",
    "LaplaceSettings",
    "MCLMCSettings",
    "NutpieSettings",
    "NutsSettings",
    "RecordSettings",
    "RunOptions",
    "SVISettings",
    "Settings",
    "TrustRegionSettings",
    "WienerSettings",
    "parse",
]

Check = Callable[[str, Any], None]
"""Called with the option's name and value; raises InputError for a value that the option cannot have."""


def _whole(least: int) -> Check:
    def check(name: str, value: Any) -> None:
        if isinstance(value, bool) or not hasattr(value, "__index__"):
            raise InputError(name, repr(value), "a whole number")
        if value < least:
            raise InputError(name, value, f"{least} or more")

    return check


def _real(above: float, below: float = math.inf) -> Check:
    def check(name: str, value: Any) -> None:
        if isinstance(value, bool) or not isinstance(value, Real) or not above < float(value) < below:
            upper = "" if below == math.inf else f" and below {below:g}"
            raise InputError(name, repr(value), f"a number above {above:g}{upper}")

    return check


def _one_of(*choices: str) -> Check:
    def check(name: str, value: Any) -> None:
        if value not in choices:
            raise InputError(name, repr(value), ", ".join(map(repr, choices[:-1])) + f" or {choices[-1]!r}")

    return check


def _flag(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise InputError(name, repr(value), "True or False")


def _name(name: str, value: Any) -> None:
    if not isinstance(value, str):
        raise InputError(name, repr(value), "a name")


def _sizes(name: str, value: Any) -> None:
    """A whole number, or one for each plate."""
    for size in value.values() if isinstance(value, Mapping) else (value,):
        _whole(1)(name, size)


def _path(name: str, value: Any) -> None:
    if not isinstance(value, str | Path):
        raise InputError(name, repr(value), "a path")


def _start(name: str, value: Any) -> None:
    """Whether the values fit the problem is checked by the methods (:mod:`astrozoo.infer.starts`)."""
    if isinstance(value, str) and value != "search":
        raise InputError(name, repr(value), "'search', values, or a Result")


def _result(name: str, value: Any) -> None:
    from astrozoo.types import Result

    if not isinstance(value, Result):
        raise InputError(name, type(value).__name__, "a Result")


def _metric(name: str, value: Any) -> None:
    """Whether it fits the problem is checked by the methods (:mod:`astrozoo.infer._structure`)."""
    if isinstance(value, Real | Path | list | tuple):
        raise InputError(name, repr(value), "a kind, a mapping of sites to kinds, or an operator")


def _site_names(name: str, value: Any) -> None:
    named = isinstance(value, Sequence) and all(isinstance(item, str) for item in value)
    if isinstance(value, str) or not named:
        raise InputError(name, repr(value), "a sequence of names of sites")


def _comm(name: str, value: Any) -> None:
    if not all(hasattr(value, part) for part in ("rank", "size", "all_reduce", "all_gather")):
        raise InputError(name, type(value).__name__, "a Comm, such as astrozoo.dist.from_launcher()")


def _by(check: Check, *, required: bool = True) -> dict[str, Any]:
    """Metadata of a field: its check. None passes too, unless a value is ``required``."""
    return {"check": check, "required": required}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """A record whose fields are checked when it is made.

    Raises:
        InputError: for a value of the wrong type or out of its range.
    """

    def __post_init__(self) -> None:
        for option in fields(self):
            value = getattr(self, option.name)
            if value is not None or option.metadata["required"]:
                option.metadata["check"](option.name, value)


@dataclass(frozen=True, kw_only=True)
class RunOptions(Settings):
    """Options that every method takes.

    Defaults of ``draws``, ``chains`` and ``budget`` differ by method: :data:`astrozoo.registry.METHODS`.

    Args:
        seed: of all random numbers of the run.
        draws: per chain. Those of Markov chains come after the warm-up; those of a fitted guide or normal
            are independent.
        chains: of each problem. Where draws are independent, chains are only a shape.
        budget: the most iterations of an optimiser, or gradients of a sampler: per chain of ``hmc`` and
            ``auto``, in all of ``nuts`` and ``nutpie``. None: no limit (samplers only). What was done until
            then is returned.
        start: unconstrained values ``[dim]`` or ``[problem, dim]`` (of variational methods also flat guide
            parameters), an earlier Result (its location), or "search": the highest point that many climbs
            from draws of the prior reach.
        compile: "auto" compiles a graph once that pays, "always" at once, "never" not at all.
        progress: show a progress bar where standard error is a terminal.
        checkpoint: file from which a killed run continues. Runs with ``compile`` "never" or "always" continue
            to the same draws to the bit; "auto" compiles after some time, which shows in the rounding.
        throw: raise an InferenceError in place of returning a result that has not converged.
        keep: names of the sites whose draws are kept in ``Result.draws``. None: all.
        comm: the processes that share the run, each of which makes the same call (:mod:`astrozoo.dist`).
            All return the same result. None: those of :func:`astrozoo.dist.together`, or this
            process alone.
        shard: what they divide: the "data", the "chains", or the "problems" of a batch.
    """

    seed: int = field(default=0, metadata=_by(_whole(0)))
    draws: int = field(metadata=_by(_whole(1)))
    chains: int = field(metadata=_by(_whole(1)))
    budget: int | None = field(default=None, metadata=_by(_whole(1), required=False))
    start: Any = field(default=None, metadata=_by(_start, required=False))
    compile: Literal["auto", "always", "never"] = field(
        default="auto", metadata=_by(_one_of("auto", "always", "never"))
    )
    progress: bool = field(default=True, metadata=_by(_flag))
    checkpoint: str | Path | None = field(default=None, metadata=_by(_path, required=False))
    throw: bool = field(default=False, metadata=_by(_flag))
    keep: Sequence[str] | None = field(default=None, metadata=_by(_site_names, required=False))
    comm: Comm | None = field(default=None, metadata=_by(_comm, required=False))
    shard: Literal["data", "chains", "problems"] = field(
        default="data", metadata=_by(_one_of("data", "chains", "problems"))
    )

    @property
    def iterations(self) -> int:
        """The budget of an optimiser, which has one always (:func:`parse`)."""
        assert self.budget is not None
        return self.budget


@dataclass(frozen=True, kw_only=True)
class RecordSettings(Settings):
    """What ``hmc`` and ``auto`` keep of their draws, besides ``keep`` (:class:`RunOptions`).

    Methods with independent draws have none of these settings: there ``draws`` says how many are made.

    Args:
        thin: every how many draws one is kept.
        summaries: make ``Result.summaries`` of all draws as they come, those not kept among them.
        stream: folder to which draws are written as they come; ``Result.draws`` are then memory-mapped.
            :func:`astrozoo.infer.recorder.open_draws` reads what a killed run left.
    """

    thin: int = field(default=1, metadata=_by(_whole(1)))
    summaries: bool = field(default=False, metadata=_by(_flag))
    stream: str | Path | None = field(default=None, metadata=_by(_path, required=False))


@dataclass(frozen=True, kw_only=True)
class HMCSettings(RecordSettings):
    """Settings of :func:`astrozoo.infer.hmc.hmc`.

    Args:
        warmup: iterations of adaptation. With 0 only the step size is adapted, once.
        target_acceptance: mean acceptance rate that the step size is adapted to.
        max_steps: the most leapfrog steps of a trajectory.
        least_length: least length of a trajectory, in SDs of the mass matrix's normal. The default is a
            quarter of the normal's period: the rate of ChEES is greatest at 1.17, by 14 %, but there a
            direction that is badly whitened mixes at half the pace. A posterior that is far from normal
            gains by a longer one.
        precondition: a Result whose covariance (of many latents: whose variances) is the first mass matrix.
            Chains then start from its normal unless ``start`` is given.
        metric: which mass matrices are estimated: "dense", "low_rank" or "diagonal" for all latents, or one
            of these or "fourier" by site. "fourier" is diagonal in Fourier space, over the last two axes of a
            site (or its only one), and suits a field on a grid; "fourier_3d" is over the last three. It may
            also be an operator with ``velocity``, ``force``, ``whiten`` and ``log_det``, such as the
            preconditioner of a model (:class:`astrozoo.infer._operators.Preconditioner`). The rest is
            estimated in its coordinates.
            None: ``Problem.preconditioner``, or where that is None too, dense up to 200 latents and low rank
            above.
    """

    warmup: int = field(default=200, metadata=_by(_whole(0)))
    target_acceptance: float = field(default=0.8, metadata=_by(_real(0.0, 1.0)))
    max_steps: int = field(default=256, metadata=_by(_whole(1)))
    least_length: float = field(default=math.pi / 2, metadata=_by(_real(0.0)))
    precondition: Any = field(default=None, metadata=_by(_result, required=False))
    metric: Any = field(default=None, metadata=_by(_metric, required=False))


@dataclass(frozen=True, kw_only=True)
class MCLMCSettings(HMCSettings):
    """Settings of :func:`astrozoo.infer.mclmc.mclmc`: those of ``hmc``, and these.

    Args:
        target_acceptance: mean acceptance rate of the adjusted method.
        adjusted: end each trajectory with a Metropolis test.
        energy_error: of the unadjusted method: median squared energy error of a trajectory, per dimension.
    """

    target_acceptance: float = field(default=0.9, metadata=_by(_real(0.0, 1.0)))
    adjusted: bool = field(default=True, metadata=_by(_flag))
    energy_error: float = field(default=5e-4, metadata=_by(_real(0.0)))


@dataclass(frozen=True, kw_only=True)
class AnnealedSettings(HMCSettings):
    """Settings of :func:`astrozoo.infer.annealed.annealed`: those of ``hmc``, and these.

    Args:
        warmup: iterations of adaptation at noise level 0, after the annealing.
        noise: first noise level, in units of the noise of the data. Each level is half of the one before.
        levels: noise levels above 0.
        trajectories: of each chain at each of these levels.
        energy_error: as in :class:`MCLMCSettings`, at these levels.
    """

    warmup: int = field(default=100, metadata=_by(_whole(0)))
    noise: float = field(default=8.0, metadata=_by(_real(0.0)))
    levels: int = field(default=7, metadata=_by(_whole(1)))
    trajectories: int = field(default=8, metadata=_by(_whole(1)))
    energy_error: float = field(default=5e-3, metadata=_by(_real(0.0)))


@dataclass(frozen=True, kw_only=True)
class NutsSettings(Settings):
    """Settings of :func:`astrozoo.infer.nuts.nuts`.

    Args:
        warmup: iterations of adaptation.
        target_acceptance: mean acceptance rate that the step size is adapted to.
        max_tree_depth: a trajectory has at most ``2 ** max_tree_depth`` steps.
        precondition: a Result. The sampler moves in coordinates that its covariance makes uncorrelated, and
            starts at its location unless ``start`` is given.
        dense_mass: adapt a dense mass matrix in place of a diagonal one.
    """

    warmup: int = field(default=500, metadata=_by(_whole(0)))
    target_acceptance: float = field(default=0.8, metadata=_by(_real(0.0, 1.0)))
    max_tree_depth: int = field(default=10, metadata=_by(_whole(1)))
    precondition: Any = field(default=None, metadata=_by(_result, required=False))
    dense_mass: bool = field(default=False, metadata=_by(_flag))


@dataclass(frozen=True, kw_only=True)
class NutpieSettings(Settings):
    """Settings of :func:`astrozoo.infer.nutpie.nutpie`.

    Args:
        warmup, target_acceptance, max_tree_depth, precondition: as :class:`NutsSettings`.
        low_rank: adapt a mass matrix of a diagonal and a few directions in place of a diagonal one.
    """

    warmup: int = field(default=400, metadata=_by(_whole(0)))
    target_acceptance: float = field(default=0.8, metadata=_by(_real(0.0, 1.0)))
    max_tree_depth: int = field(default=10, metadata=_by(_whole(1)))
    precondition: Any = field(default=None, metadata=_by(_result, required=False))
    low_rank: bool = field(default=False, metadata=_by(_flag))


@dataclass(frozen=True, kw_only=True)
class AutoSettings(RecordSettings):
    """Settings of :func:`astrozoo.infer.auto.auto`.

    Args:
        warmup: of the final ``hmc``.
        metric: of ``hmc``, and of ``laplace`` above :data:`astrozoo.types.DENSE_COVARIANCE` latents.
        starts: draws of the prior from which the search climbs. As many as ``chains`` share compiled graphs.
        steps: of each climb.
        precision: "single" searches and samples in float32, at about half the price; the mode and its
            curvature are computed in the precision of the data. It suits log densities whose rounding error
            is well below 1.
    """

    warmup: int = field(default=100, metadata=_by(_whole(0)))
    metric: Any = field(default=None, metadata=_by(_metric, required=False))
    starts: int = field(default=48, metadata=_by(_whole(1)))
    steps: int = field(default=300, metadata=_by(_whole(1)))
    precision: Literal["data", "single"] = field(default="data", metadata=_by(_one_of("data", "single")))


@dataclass(frozen=True, kw_only=True)
class LaplaceSettings(Settings):
    """Settings of :func:`astrozoo.infer.laplace.laplace`.

    Args:
        radius: first radius of the trust region, in unconstrained space.
        tolerance: length of the Newton step at which the mode is reached [posterior SD].
        metric: the preconditioner of the products with the curvature that take the place of a Hessian above
            :data:`astrozoo.types.DENSE_COVARIANCE` latents, as in :class:`HMCSettings`.
    """

    radius: float = field(default=1.0, metadata=_by(_real(0.0)))
    tolerance: float = field(default=1e-4, metadata=_by(_real(0.0)))
    metric: Any = field(default=None, metadata=_by(_metric, required=False))


@dataclass(frozen=True, kw_only=True)
class WienerSettings(Settings):
    """Settings of :func:`astrozoo.infer.wiener.wiener`.

    Args:
        tolerance: residual of the equations of the mean, relative to that of the start.
        metric: the preconditioner, as in :class:`LaplaceSettings`.
    """

    tolerance: float = field(default=1e-6, metadata=_by(_real(0.0)))
    metric: Any = field(default=None, metadata=_by(_metric, required=False))


@dataclass(frozen=True, kw_only=True)
class El2oSettings(Settings):
    """Settings of :func:`astrozoo.infer.el2o.el2o`.

    Args:
        particles: points at which the posterior is matched, in antithetic pairs. None: two per dimension, and
            at least 16.
        tolerance: the run has converged when no mean moves by more SDs than this, and no log variance by
            more.
    """

    particles: int | None = field(default=None, metadata=_by(_whole(1), required=False))
    tolerance: float = field(default=1e-3, metadata=_by(_real(0.0)))


@dataclass(frozen=True, kw_only=True)
class SVISettings(Settings):
    """Settings of :func:`astrozoo.infer.svi.svi`.

    Args:
        objective: "monte_carlo", or a name from ``problem.objectives``.
        particles: Monte-Carlo draws of the ELBO, in antithetic pairs.
        learning_rate: first learning rate of Adam.
        tolerance: a smaller rise of the ELBO is no progress [nat].
        minibatch: elements of the data plate that each gradient uses, drawn afresh without replacement; a
            weight makes up for the others. Of several data plates: ``{plate: elements}``. None: all of them.
    """

    objective: str = field(default="monte_carlo", metadata=_by(_name))
    particles: int = field(default=8, metadata=_by(_whole(1)))
    learning_rate: float = field(default=0.02, metadata=_by(_real(0.0)))
    tolerance: float = field(default=1e-3, metadata=_by(_real(0.0)))
    minibatch: int | Mapping[str, int] | None = field(default=None, metadata=_by(_sizes, required=False))


@dataclass(frozen=True, kw_only=True)
class TrustRegionSettings(Settings):
    """Settings of :func:`astrozoo.infer.trust_region.trust_region`.

    Args:
        objective: "monte_carlo", or a name from ``problem.objectives``.
        mode: "stochastic" makes fresh draws in each iteration. "fixed" makes draws once and doubles their
            number until the errors of the means that come from their choice are small beside the posterior
            SDs. "auto" is fixed for a mean field and stochastic for any other guide, which could fit itself
            to the draws.
        particles: Monte-Carlo draws of the ELBO at first, in antithetic pairs. None: twice as many as the
            guide has latents, at least 16 and at most 64.
        radius: first radius of the trust region, in the guide's parameters.
        tolerance: length of the Newton step at which the fixed mode has converged [posterior SD].
        covariance: what ``Result.covariance`` is: the guide's own, or the linear-response covariance (fixed
            mode, or an objective without noise), which corrects the variances of a mean field.
    """

    objective: str = field(default="monte_carlo", metadata=_by(_name))
    mode: Literal["auto", "stochastic", "fixed"] = field(
        default="auto", metadata=_by(_one_of("auto", "stochastic", "fixed"))
    )
    particles: int | None = field(default=None, metadata=_by(_whole(1), required=False))
    radius: float = field(default=1.0, metadata=_by(_real(0.0)))
    tolerance: float = field(default=1e-4, metadata=_by(_real(0.0)))
    covariance: Literal["guide", "linear_response"] = field(
        default="guide", metadata=_by(_one_of("guide", "linear_response"))
    )


def parse(method: str, options: Mapping[str, Any]) -> tuple[RunOptions, Settings]:
    """The options of a run, sorted and checked.

    Args:
        method: a name from :data:`astrozoo.registry.METHODS`.
        options: by name; those that are missing have the method's defaults.

    Raises:
        UnknownNameError: for a name that no method takes; it suggests the nearest that this method takes.
        InputError: for an option of other methods, which it names; for a value of the wrong type or range.
    """
    settings = registry.METHODS[method].settings
    shared, special = _names(RunOptions), _names(settings)
    for name in options:
        if name not in shared | special:
            takers = [other for other, row in registry.METHODS.items() if name in _names(row.settings)]
            if not takers:
                raise UnknownNameError(f"option of {method}", name, shared | special)
            takers_text = "methods that take it: " + ", ".join(takers)
            raise InputError(f"option of {method}", repr(name), f"an option of {method} ({takers_text})")
    run = RunOptions(**{
        **registry.METHODS[method].defaults, **{k: v for k, v in options.items() if k in shared},
    })  # fmt: skip
    if run.budget is None and "budget" in registry.METHODS[method].defaults:
        raise InputError("budget", None, "1 or more")
    return run, settings(**{k: v for k, v in options.items() if k in special})


def _names(record: type[Settings]) -> set[str]:
    return {option.name for option in fields(record)}
