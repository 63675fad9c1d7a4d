"""A learned prior of a galaxy's latents, p(z) or p(z | size, magnitude, redshift), for any encoder.

An autoencoder that was trained with the prior N(0, I) does not draw realistic galaxies from it: its aggregate
posterior, the mean of q(z | x) over galaxies, is another distribution. :class:`LatentPrior` is that
distribution, as a flow or a VampPrior. It is trained on draws of q(z | x), never on their means,
alone (:func:`training_problem`) or together with the autoencoder (:mod:`astrozoo.models.joint_prior`)::

    prior = latent_flow.load()
    z = prior({"half_light_radius": 0.3, "magnitude": 22.0, "redshift": 0.5}).sample()

:class:`LatentGalaxy` infers the latents of one galaxy, and its conditions if they are unknown, under a
trained prior.

References:
    Lanusse et al. 2021, MNRAS 504, 5543 (flow over latents, conditions); Tomczak & Welling 2018 (VampPrior).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import transforms

from astrozoo._trained import Trained
from astrozoo.data.latents import LatentTable, read_latents
from astrozoo.data.weights import load_weights
from astrozoo.errors import DataError, InputError, UnknownNameError
from astrozoo.models.mixture_prior import MixturePrior
from astrozoo.nets.flow import KINDS, StandardisedFlow, make_flow
from astrozoo.types import Problem

__all__ = [
    "LatentGalaxy",
    "LatentPrior",
    "fitted_to",
    "load",
    "problem",
    "read",
    "simulate",
    "training",
    "training_problem",
]

PRIORS = (*KINDS, "vamp")
"""Kinds of learned priors: the flows, and a VampPrior."""
LOGARITHMIC = ("half_light_radius", "flux", "snr")
"""Names of conditions whose logarithm a flow takes. They are positive and their ratios matter."""
LEAST_PRECISION = 1e-6
"""[1] Smallest precision of a measured latent. An SD that is not below the prior's carries no information;
its likelihood is then flat over thousands of prior SDs instead of undefined."""
SIMULATED_SD = 0.5
"""[1] SD of the measured latents of a simulated galaxy, in units of the SD of N(0, I): an encoder's typical
value lies between .05 (bright galaxies) and 1 (no information)."""


@dataclass(frozen=True, eq=False)
class LatentPrior:
    """p(z | conditions), as a model of a table of posteriors. Its module ``prior`` holds the weights.

    Args:
        features: length of ``z``.
        kind: one of :data:`PRIORS`.
        conditions: names of the conditions; a VampPrior takes none.
        transforms, hidden: see :func:`astrozoo.nets.flow.make_flow`.
        passes: see there; with 2 passes both directions are quick. A "realnvp" has one.
        components: of a VampPrior.
        seed: of the initial weights.

    Raises:
        UnknownNameError: for an unknown kind.
        InputError: for settings out of range, and for conditions of a kind that takes none.
    """

    features: int
    kind: str = "realnvp"
    conditions: tuple[str, ...] = ()
    transforms: int = 8
    hidden: tuple[int, ...] = (64, 64)
    passes: int | None = 2
    components: int = 128
    seed: int = 0
    prior: Any = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.kind not in PRIORS:
            raise UnknownNameError("prior of latents", self.kind, PRIORS)
        if self.conditions and self.kind not in KINDS:
            raise InputError("conditions", f"{self.conditions} of {self.kind!r}", f"none, or {KINDS}")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            object.__setattr__(self, "prior", self._module())

    def _module(self) -> nn.Module:
        if self.kind == "vamp":
            return MixturePrior(self.features, self.components)
        passes = None if self.kind == "realnvp" else self.passes
        flow = make_flow(
            self.kind,
            self.features,
            len(self.conditions),
            transforms=self.transforms,
            hidden=self.hidden,
            passes=passes,
        )
        return StandardisedFlow(flow, [name in LOGARITHMIC for name in self.conditions])

    @property
    def settings(self) -> dict[str, Any]:
        """The arguments that this prior was made with."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.init}

    @property
    def ranges(self) -> dict[str, tuple[float, float]]:
        """The least and the greatest value of each condition in the set that the prior was trained on."""
        limits = self.prior.context_range.tolist() if self.conditions else ([], [])
        return dict(zip(self.conditions, zip(*limits, strict=True), strict=True))

    def __call__(self, mean: Tensor, sd: Tensor, conditions: Tensor | None = None) -> None:
        """The generative model. Only the length of ``mean`` matters: the guide draws from the table."""
        prior: Any = pyro.module("prior", self.prior)
        with pyro.plate("galaxy", len(mean)):
            pyro.sample("z", prior(conditions if self.conditions else None))

    def given(self, conditions: Mapping[str, Any] | None = None) -> Any:
        """p(z | conditions) as a distribution.

        Args:
            conditions: a number or a tensor ``[*b]`` for each of the prior's conditions, by name.

        Raises:
            InputError: a condition is missing, unknown or not finite. The message has the trained range.

        Warns:
            UserWarning: a condition is outside the trained range.
        """
        return self.prior(self.tensor_of(conditions or {}) if self.conditions or conditions else None)

    def tensor_of(self, conditions: Mapping[str, Any]) -> Float[Tensor, "*b conditions"] | None:
        """The conditions by name as a tensor, checked; see :meth:`given`. None if the prior has none."""
        known = "; ".join(f"{name} of {low:.4g} to {high:.4g}" for name, (low, high) in self.ranges.items())
        missing = [name for name in self.conditions if name not in conditions]
        unknown = [name for name in conditions if name not in self.conditions]
        if missing or unknown:
            got = ", ".join([f"no {name}" for name in missing] + [f"an unknown {name}" for name in unknown])
            raise InputError("conditions", got, known or "none: this prior has no conditions")
        if not self.conditions:
            return None
        like = self.prior.centre
        values = [torch.as_tensor(conditions[name]).to(like) for name in self.conditions]
        for name, value in zip(self.conditions, values, strict=True):
            low, high = self.ranges[name]
            if not value.isfinite().all():
                raise InputError(name, "values that are not finite", f"{low:.4g} to {high:.4g}")
            outside = (value < low) | (value > high)
            if outside.any():
                shown = value if value.ndim == 0 else value[outside][0]
                text = f"{name} {float(shown):.4g} is outside the trained range, {low:.4g} to {high:.4g}"
                warnings.warn(f"{text}: the flow extrapolates", UserWarning, stacklevel=3)
        return torch.stack(torch.broadcast_tensors(*values), -1)


def fitted_to(table: LatentTable, kind: str = "realnvp", **settings: Any) -> LatentPrior:
    """An untrained prior that starts at the moments of a table: its normal, or its posteriors.

    Args:
        settings: of :class:`LatentPrior`.

    Raises:
        InputError: the table has too few rows, or a condition that is constant.
    """
    names = table.names if kind in KINDS else ()
    made = LatentPrior(table.mean.shape[1], kind, names, **settings)
    if kind == "vamp":
        made.prior.start(table.mean, table.sd)
    else:
        if len(table) <= table.mean.shape[1]:
            expected = f"more rows than the {table.mean.shape[1]} latents"
            raise InputError("table of latents", f"{len(table)} rows", expected)
        mean = table.mean.double()
        covariance = mean.T.cov() + table.sd.double().square().mean(0).diag()
        made.prior.standardise(mean.mean(0), covariance, table.conditions)
    return made


def training_problem(prior: LatentPrior, table: LatentTable) -> Problem:
    """The problem of training a prior on draws of a table's posteriors: its ELBO is -KL(q || p).

    Raises:
        InputError: the table has other latents or conditions.
    """
    if table.mean.shape[1] != prior.features:
        raise InputError("latents", f"{table.mean.shape[1]} of them", f"{prior.features}")
    args: tuple[Tensor, ...] = (table.mean, table.sd)
    if prior.conditions:
        args = (*args, table.only(prior.conditions).conditions)
    plates = {"galaxy": dict.fromkeys(("mean", "sd", "conditions")[: len(args)], 0)}
    guides = {"posterior": "astrozoo.guides.latent_flow:posterior"}
    return Problem(prior, args, name="latent_flow", data_plates=plates, guides=guides)


def training(
    *,
    out: Path,
    path: Path | None,
    seed: int,
    device: str = "cpu",
    flow: str = "realnvp",
    conditions: str | None = None,
    galaxies: int = 4000,
) -> dict[str, Any]:
    """Arguments of :func:`astrozoo.train` that fit a prior to a table; :func:`load` reads the result.

    Args:
        out: folder of the run, which is not used.
        path: a table (:func:`astrozoo.data.latents.read_latents`). None draws one from the shipped prior.
        seed: of the table that is drawn and of the initial weights.
        device: to train on.
        flow: kind of the prior.
        conditions: names, separated by commas; "" for none. None: all of the table.
        galaxies: rows of the table that is drawn.

    Raises:
        DataError: the file is not such a table.
        InputError: the table is too small.
    """
    if path is None:
        table = simulate(seed, galaxies=galaxies)[0]
        table = table if conditions is None else table.only(_names(conditions) or ())
    else:
        table = read(path, conditions=conditions)
    if flow not in KINDS:
        table = table.only(())
    trained_on, held_out = split(table)
    prior = fitted_to(trained_on, flow, seed=seed)
    return {
        "problem": training_problem(prior, trained_on),
        "guide": "posterior",
        "held_out": training_problem(prior, held_out),
        "steps": 2000,
        "batch": min(256, len(trained_on)),
        "learning_rate": 2e-3,
        "gradient_clip": 100.0,
        "device": device,
    }


def split(table: LatentTable) -> tuple[LatentTable, LatentTable]:
    """The rows to train on, and the last tenth, which is held out.

    Raises:
        InputError: the table has fewer than 20 rows.
    """
    if len(table) < 20:
        raise InputError("table of latents", f"{len(table)} rows", "20 or more")
    last = len(table) // 10
    return table[:-last], table[-last:]


def load(
    *,
    weights: str | Path | Trained = "latent_flow",
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> LatentPrior:
    """A trained prior.

    Args:
        weights: the name of the package's weights, a file written by training, or the result of training.
        dtype: of the networks; the weights are stored in float32.
        device: of the networks.

    Raises:
        UnknownNameError: there are no weights of that name.
        DataError: the file is missing or corrupt, or its weights are of another model.
    """
    trained = weights if isinstance(weights, Trained) else load_weights(weights)
    settings = trained.settings.get("model", {})
    known = {f.name for f in fields(LatentPrior) if f.init}
    if not {"features", "kind"} <= settings.keys() <= known:
        raise DataError("weights", f"those of {trained.model!r}", "a trained prior of latents")
    tuples = {name: tuple(value) for name, value in settings.items() if isinstance(value, list)}
    prior = LatentPrior(**{**settings, **tuples})
    trained.load_into(prior.prior, "model.prior")
    prior.prior.to(dtype=dtype, device=device).eval().requires_grad_(False)
    return prior


@dataclass(frozen=True, eq=False)
class LatentGalaxy:
    """The latents of one galaxy, measured with noise, under a trained prior.

    The prior's noise is sampled and pushed through the flow, so that a sampler sees independent normals.

    Args:
        prior: a flow.
        infer_conditions: whether the conditions are unknown. Each is then uniform over its trained range, in
            its logarithm if it is logarithmic.
    """

    prior: LatentPrior
    infer_conditions: bool = False

    def __call__(
        self,
        value: Float[Tensor, "latents"],
        sd: Float[Tensor, "latents"],
        conditions: Float[Tensor, "conditions"],
    ) -> None:
        if self.infer_conditions:
            conditions = torch.stack([self._condition(name) for name in self.prior.conditions], -1)
        p = self.prior.prior(conditions if self.prior.conditions else None)
        noise = pyro.sample("noise", p.noise)
        z = pyro.deterministic("z", p.push(noise), event_dim=1)
        pyro.sample("value", dist.Normal(z, sd).to_event(1), obs=value)

    def _condition(self, name: str) -> Tensor:
        low, high = self.prior.ranges[name]
        like = self.prior.prior.centre
        if name in LOGARITHMIC:
            uniform = dist.Uniform(like.new_tensor(math.log(low)), like.new_tensor(math.log(high)))
            return pyro.sample(name, dist.TransformedDistribution(uniform, [transforms.ExpTransform()]))
        return pyro.sample(name, dist.Uniform(like.new_tensor(low), like.new_tensor(high)))


def read(path: str | Path, *, conditions: str | None = None) -> LatentTable:
    """Read a table of latents; see :func:`astrozoo.data.latents.read_latents`.

    Args:
        conditions: names, separated by commas. None: all.

    Raises:
        DataError: the file is missing or is not such a table.
    """
    return read_latents(path, _names(conditions))


def simulate(
    seed: int = 0,
    *,
    galaxies: int = 1,
    weights: str | Path | Trained = "latent_flow",
    infer_conditions: bool = False,
    **settings: Any,
) -> tuple[LatentTable, dict[str, Tensor]]:
    """A table of galaxies drawn from a trained prior, with conditions uniform over their trained ranges.

    Args:
        galaxies: rows of the table.
        weights: see :func:`load`.
        infer_conditions: see :class:`LatentGalaxy`; the conditions are then among the truth.
        settings: further ones of :func:`problem`, which are not used.

    Returns:
        The table, in float32, and the latents of its first galaxy by site name, in float64.
    """
    prior = load(weights=weights, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    shares = torch.rand(galaxies, len(prior.conditions), generator=generator, dtype=torch.float64)
    drawn = {}
    for (name, (low, high)), share in zip(prior.ranges.items(), shares.T, strict=True):
        drawn[name] = (low + share * (high - low)) if name not in LOGARITHMIC else low * (high / low) ** share
    conditions = torch.stack(list(drawn.values()), -1) if drawn else shares
    noise = torch.randn(galaxies, prior.features, generator=generator, dtype=torch.float64)
    z = prior.prior(conditions if drawn else None).push(noise)
    error = torch.randn(z.shape, generator=generator, dtype=torch.float64)
    value = z + SIMULATED_SD * error
    share = 1 / (1 + SIMULATED_SD**2)  # of the measurement in the posterior mean under N(0, I)
    sd = torch.full_like(z, SIMULATED_SD * math.sqrt(share))
    table = LatentTable(value * share, sd, conditions, prior.conditions).to(torch.float32)
    truth = {"noise": noise[0], "z": z[0]}
    if infer_conditions:
        truth |= {name: values[0] for name, values in drawn.items()}
    return table, truth


def problem(
    data: LatentTable,
    *,
    galaxy: int = 0,
    weights: str | Path | Trained = "latent_flow",
    infer_conditions: bool = False,
    inferred_under: str = "normal",
) -> Problem:
    """The problem of one galaxy's latents under a trained flow, in float64.

    Args:
        data: the table with the galaxy.
        galaxy: its row.
        weights: see :func:`load`; those of a flow.
        infer_conditions: whether the conditions are unknown; those of the table are then not used.
        inferred_under: the prior under which the encoder's mean and SD were inferred. "normal" is N(0, I):
            the likelihood of z is then q(z | x) / N(z; 0, I). "flat": it is q(z | x).

    Raises:
        InputError: there is no such row; the table has another number of latents than the prior, or lacks one
            of its conditions; the prior is not a flow.
    """
    if not 0 <= galaxy < len(data):
        raise InputError("galaxy", galaxy, f"a row, 0 to {len(data) - 1}")
    if inferred_under not in ("normal", "flat"):
        raise InputError("inferred_under", repr(inferred_under), "'normal' or 'flat'")
    prior = load(weights=weights, dtype=torch.float64)
    if prior.kind not in KINDS:
        raise InputError("prior", repr(prior.kind), f"a flow, one of {', '.join(KINDS)}")
    if data.mean.shape[1] != prior.features:
        raise InputError("latents of the table", data.mean.shape[1], f"{prior.features}, those of the prior")
    row = data[galaxy : galaxy + 1].to(torch.float64)
    mean, sd = row.mean[0], row.sd[0]
    value = mean
    if inferred_under == "normal":
        precision = (sd**-2 - 1).clamp(min=LEAST_PRECISION)
        value, sd = mean * sd**-2 / precision, precision.rsqrt()
    given: Mapping[str, Any] = dict(zip(row.names, row.conditions[0], strict=True))
    if infer_conditions:
        given = {name: _middle(name, *limits) for name, limits in prior.ranges.items()}
    known = {name: given[name] for name in prior.conditions if name in given}
    conditions = prior.tensor_of(known)
    start = {"noise": prior.prior(conditions).transform(mean)}
    if infer_conditions:
        start |= {name: torch.as_tensor(value, dtype=torch.float64) for name, value in known.items()}
    args = (value, sd, torch.empty(0, dtype=torch.float64) if conditions is None else conditions)
    dims = {"noise": ("latent",), "z": ("latent",)}
    return Problem(LatentGalaxy(prior, infer_conditions), args, name="latent_flow", dims=dims, start=start)


def _middle(name: str, low: float, high: float) -> float:
    return math.sqrt(low * high) if name in LOGARITHMIC else (low + high) / 2


def _names(conditions: str | None) -> Sequence[str] | None:
    return None if conditions is None else tuple(name for name in conditions.split(",") if name)
