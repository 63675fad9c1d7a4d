"""What every backend shares: randomness, checkpoints, progress, and the making of a Result."""

from __future__ import annotations

import hashlib
import json
import math
import operator
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from astrozoo._files import replacing
from astrozoo.errors import DataError, InferenceError, InputError
from astrozoo.infer._moments import Moments
from astrozoo.types import DENSE_COVARIANCE, Problem, Result, Status

if TYPE_CHECKING:
    from collections.abc import Iterator

    from astrozoo.types import Objective

__all__ = [
    "Checkpoint",
    "Clock",
    "Report",
    "by_chain",
    "chain_starts",
    "ensemble_status",
    "exact_moments",
    "finish",
    "generator_for",
    "guide_draws",
    "guide_name",
    "log_ratio",
    "noise_for",
    "noise_per_latent",
    "normal_draws",
    "progress_bar",
    "rows_at_once",
    "second_moments",
    "start_points",
    "typed",
    "variational_start",
    "worst",
]

R_HAT = 1.05
"""Split R-hat below which chains are taken to agree."""
_PROBED = 1000
"""Noise coordinates of a guide up to which its shape is probed one by one: the probes of 1,000 take 8 MB."""
ELEMENTS_AT_ONCE = 2**22
"""Numbers of noise or of draws that one call evaluates: 32 MiB in double precision, of which the intermediate
results of a captured function take ten to thirty times as much."""
_DISCRETE = 101
"""The stream of draws of discrete sites."""
_RATIOS = 100
"""Draws whose density ratios are computed at once."""
_RATIO = "(log ratio)"
"""Key of the density ratios among the columns of :func:`guide_draws`; no site can have this name."""
_MERSENNE_WORDS = slice(3, 3 + 624)
"""Where the 624 words of the Mersenne Twister lie in the state of a CPU generator, in units of 8 bytes."""
_SAVE_EVERY = 30.0
"""Seconds between two checkpoints."""


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


def start_points(
    start: Any, density: Any, rows: int, seed: int, dim: int | None = None
) -> Float[Tensor, "rows dim"]:
    """Unconstrained starts, one per row.

    Args:
        start: None (the density's own ``initial``), a Result (its location), or ``[dim]`` or
            ``[rows or problems, dim]`` values.
        rows: of the whole run; a multiple of the number of problems, problem by problem.
        dim: where it is not the density's own.

    Raises:
        InputError: if ``start`` is not of one of these shapes, or not finite.
    """
    if start is None:
        return density.initial(rows, generator_for(seed, 0))
    value = start.location if isinstance(start, Result) else start
    z = torch.as_tensor(value, dtype=density.dtype, device=density.device)
    z = z[None] if z.ndim == 1 else z
    dim = density.dim if dim is None else dim
    if z.ndim != 2 or z.shape[1] != dim or rows % len(z):
        raise InputError("start", f"shape {tuple(z.shape)}", f"[{dim}] or [{rows}, {dim}]")
    if not z.isfinite().all():
        raise InputError("start", "values that are not finite", "finite unconstrained values")
    return z.repeat_interleave(rows // len(z), 0)


def variational_start(start: Any, elbo: Any, seed: int) -> Float[Tensor, "b p"]:
    """Starting parameters of a guide, from latents or parameters (told apart by their length).

    Raises:
        InputError: as :func:`start_points`.
    """
    rows = elbo.batch or 1
    if start is None:
        return elbo.initial(None)
    value = torch.as_tensor(start.location if isinstance(start, Result) else start)
    if value.shape[-1] == elbo.dim and elbo.dim != elbo.layout.dim:
        return start_points(value, elbo, rows, seed)
    return elbo.initial(start_points(value, elbo, rows, seed, dim=elbo.layout.dim))


def guide_name(guide: Any) -> str:
    """For reports and checkpoints."""
    return getattr(guide, "__name__", type(guide).__name__)


def chain_starts(density: Any, chains: int, seed: int) -> Float[Tensor, "b c dim"]:
    """The density's own starts, for every chain of every problem."""
    if density.batch is None:
        return density.initial(chains, generator_for(seed, 0))[None]
    return torch.stack([density.initial(density.batch, generator_for(seed, 0, c)) for c in range(chains)], 1)


class Clock:
    """Seconds of running, without those of compiling an objective.

    Args:
        told: earlier readings, of a run that is continued; it goes on from the last.
    """

    def __init__(self, objective: Objective, told: Sequence[np.ndarray]) -> None:
        self.objective = objective
        seen = np.asarray(told)
        self.before = 0.0
        self.before = (seen[np.isfinite(seen)].max() if np.isfinite(seen).any() else 0.0) - self()

    def __call__(self) -> float:
        """Now."""
        compiling = float(getattr(self.objective, "compile_seconds", 0.0))
        return self.before + time.monotonic() - compiling


class Checkpoint:
    """Arrays in an ``.npz`` (no pickles), tied to one problem, method, seed and settings.

    Raises:
        InputError: if the file belongs to another problem, method, seed or setting.
        DataError: if it cannot be read.
    """

    def __init__(
        self, path: str | Path | None, problem: Problem, method: str, seed: int, **settings: Any
    ) -> None:
        self.path = None if path is None else Path(path)
        self.saved_at = time.monotonic()
        self.header: dict[str, str] = {}
        if self.path is not None:
            self.header = {"digest": problem.digest, "method": method, "seed": str(seed)}
            self.header |= {name: repr(value) for name, value in settings.items()}

    def load(self) -> dict[str, np.ndarray] | None:
        """What was saved, or None if nothing was."""
        if self.path is None or not self.path.exists():
            return None
        try:
            with np.load(self.path, allow_pickle=False) as held:
                arrays = {name: held[name] for name in held.files}
            header = json.loads(str(arrays.pop("header")))
        except (OSError, ValueError, KeyError) as error:
            raise DataError(
                str(self.path), f"an unreadable file ({error})", "a checkpoint of astrozoo"
            ) from error
        for name, value in self.header.items():
            if header.get(name) != value:
                raise InputError(f"checkpoint {self.path}", f"{name} {header.get(name)}", f"{name} {value}")
        return arrays

    def save(self, arrays: Callable[[], Mapping[str, np.ndarray]], *, now: bool = False) -> None:
        """Write, if it is time to (or ``now``), to a temporary name first."""
        if self.path is None or (not now and time.monotonic() - self.saved_at < _SAVE_EVERY):
            return
        held: dict[str, Any] = {**arrays(), "header": np.asarray(json.dumps(self.header))}
        with replacing(self.path) as partial, partial.open("wb") as file:
            np.savez(file, **held)
        self.saved_at = time.monotonic()


Report = Callable[[int, str], None]


@contextmanager
def progress_bar(method: str, total: int, shown: bool) -> Iterator[Report]:
    """A bar on standard error, told ``(done, text)``; nothing where that is not a terminal."""
    if not (shown and sys.stderr.isatty()):
        yield lambda done, text: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn(method),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=total)
        yield lambda done, text: bar.update(task, completed=done, description=text)


def worst(statuses: Sequence[Status]) -> Status:
    """The status of a batched run."""
    order = (Status.INTERRUPTED, Status.DIVERGED, Status.BUDGET_SPENT, Status.CONVERGED)
    return next(status for status in order if status in statuses)


def rows_at_once(elements: int) -> int:
    """How many rows of so many elements one call evaluates (:data:`ELEMENTS_AT_ONCE`)."""
    return max(1, ELEMENTS_AT_ONCE // max(1, elements))


def exact_moments(elbo: Any, w: Float[Tensor, "b p"]) -> dict[str, Tensor] | None:
    """Moments of a guide that is an affine map of its normal noise, as fields of a Result; else None.

    They are location and covariance, or above ``_PROBED`` noise coordinates, where only mean fields are
    recognised, location and variance.
    """
    e = elbo.draw_dim
    many = e > _PROBED
    if many and noise_per_latent(elbo, w) > 1:
        return None
    like: dict[str, Any] = {"dtype": w.dtype, "device": w.device}
    check = torch.full((e,), -1.5, **like) if many else torch.linspace(-1.0, 1.5, e, **like)
    units = torch.ones(1, e, **like) if many else torch.eye(e, **like)
    z = elbo.unconstrained(w, torch.cat((torch.zeros(1, e, **like), units, check[None])))
    mean, A = z[:, 0], z[:, 1:-1] - z[:, :1]
    affine = mean + (-1.5 * A[:, 0] if many else torch.einsum("bed,e->bd", A, check))
    # Loose, as values pass through the sites' transforms and back.
    error = (z[:, -1] - affine).abs().max()
    if not error <= torch.finfo(w.dtype).eps ** 0.4 * (1 + z.abs().max()):
        return None
    if many:
        return {"location": mean, "variance": A[:, 0].square()}
    return {"location": mean} | second_moments(A.mT @ A)


def second_moments(covariance: Float[Tensor, "b d d"]) -> dict[str, Any]:
    """The covariance (up to ``DENSE_COVARIANCE`` dimensions) and its diagonal, as fields of a Result."""
    dense = covariance.shape[1] <= DENSE_COVARIANCE
    return {"covariance": covariance if dense else None, "variance": covariance.diagonal(dim1=1, dim2=2)}


def noise_per_latent(elbo: Any, w: Float[Tensor, "b p"]) -> int:
    """The most noise coordinates that any one latent of a guide depends on: 1 mean field, dim full rank.

    Above ``_PROBED`` coordinates it is exact for a mean field; any other guide is taken to depend on all of
    them.
    """
    shift = torch.randn(w.shape, generator=generator_for(0), dtype=w.dtype).to(w.device)
    like: dict[str, Any] = {"dtype": w.dtype, "device": w.device}
    e, w = elbo.draw_dim, w + 0.01 * shift
    origin = elbo.unconstrained(w, torch.zeros(1, e, **like))
    least = torch.finfo(w.dtype).eps ** 0.5
    if e <= _PROBED:
        moved = (elbo.unconstrained(w, torch.eye(e, **like)) - origin).abs() > least
        return int(moved.sum(1).max())
    # Two coordinates differ in a bit of their index. A latent that depends on both therefore moves with the
    # coordinates that have that bit, and with those that have it not.
    index = torch.arange(e, device=w.device)
    for bit in range((e - 1).bit_length()):
        has_bit = (index >> bit & 1).to(w)
        there = elbo.unconstrained(w, torch.stack((has_bit, 1 - has_bit)))
        if ((there - origin).abs() > least).all(1).any():
            return e
    return 1


def guide_draws(elbo: Any, w: Float[Tensor, "b p"], seed: int, chains: int, draws: int) -> dict[str, Any]:
    """Draws of a fitted guide, as fields of a Result: draws, sample_stats, moments and guide parameters.

    ``sample_stats`` holds ``log_ratio``, log p - log q of each draw, for a guide that has a density. The
    moments (in unconstrained space) are exact where the guide is Gaussian.
    """
    total, batched = chains * draws, elbo.batch is not None
    generator, discrete = generator_for(seed, 1, 1), generator_for(seed, _DISCRETE)
    exact = exact_moments(elbo, w)
    sampled = Moments(len(w), elbo.layout.dim, dtype=w.dtype)
    at_once = total if exact and not elbo.draw_dim else rows_at_once(len(w) * max(elbo.draw_dim, w.shape[1]))
    columns: dict[str, Tensor] = {}
    for first in range(0, total, at_once):
        rows = slice(first, min(first + at_once, total))
        shape = (rows.stop - first, elbo.draw_dim)
        noise = torch.randn(shape, generator=generator, dtype=elbo.dtype).to(elbo.device)
        part = elbo.sample(w, noise)
        if elbo.model.discrete:
            part |= elbo.discrete(elbo.unconstrained(w, noise), discrete)
        if elbo.draw_dim:
            part[_RATIO] = torch.cat([elbo.log_ratio(w, few) for few in noise.split(_RATIOS)], 1)
        if exact is None:
            sampled.add(elbo.unconstrained(w, noise))
        for name, x in part.items():
            if name not in columns:
                columns[name] = x.new_empty(len(x), total, *x.shape[2:])
            columns[name][:, rows] = x
    shaped = {name: by_chain(x, chains, batched) for name, x in columns.items()}
    stats = {"log_ratio": shaped.pop(_RATIO)} if _RATIO in shaped else {}
    moments = sampled.fields() if exact is None else exact
    return {"draws": shaped, "sample_stats": stats, "guide_parameters": w.detach().cpu().numpy(), **moments}


def elbo_of_draws(fitted: Mapping[str, Any]) -> dict[str, Any]:
    """ELBO of each problem and its standard error, from the draws of :func:`guide_draws`.

    The draws are independent of each other and of those that the fit used. Empty for a guide without density.
    """
    ratio = fitted["sample_stats"].get("log_ratio")
    if ratio is None:
        return {}
    ratio = ratio.reshape(ratio.shape[0] * ratio.shape[1], -1)
    n = len(ratio)
    error = ratio.std(0, ddof=1) / n**0.5 if n > 1 else np.full(ratio.shape[1], np.nan)
    return {"elbo": ratio.mean(0).tolist(), "elbo_se": error.tolist()}


def normal_draws(
    density: Any,
    mean: Float[Tensor, "b d"],
    root: Float[Tensor, "b d d"],
    generator: torch.Generator,
    seed: int,
    chains: int,
    draws: int,
) -> tuple[dict[str, Any], Float[Tensor, "b m"]]:
    """Draws of ``N(mean, root root')`` as fields of a Result (draws, sample_stats), and their ln p - ln q.

    Where a problem's root is undefined (NaN), its draws are its mean, and have no ratio.
    """
    e = torch.randn(chains * draws, mean.shape[1], generator=generator, dtype=mean.dtype).to(mean.device)
    z = mean[:, None] + e @ root.nan_to_num().mT
    ratio, batched = log_ratio(density, z, e, root), density.batch is not None
    shaped = {name: by_chain(x, chains, batched) for name, x in typed(density, z, seed).items()}
    return {"draws": shaped, "sample_stats": {"log_ratio": by_chain(ratio, chains, batched)}}, ratio


def log_ratio(
    density: Any, z: Float[Tensor, "b m d"], e: Float[Tensor, "m d"], root: Float[Tensor, "b d d"]
) -> Float[Tensor, "b m"]:
    """ln p - ln q of the draws ``z = mean + root e`` of a Gaussian with that (triangular) root."""
    if density.batch is None:
        log_p = density.values(z[0]).mT
    else:
        log_p = torch.cat([density.values(z[:, i]) for i in range(z.shape[1])], 1)
    log_q = -(e.square() + math.log(2 * math.pi)).sum(1) / 2
    return log_p - log_q + root.diagonal(dim1=1, dim2=2).abs().log().sum(1)[:, None]


def typed(target: Any, z: Float[Tensor, "b m d"], seed: int) -> dict[str, Tensor]:
    """Constrained draws of all sites, the discrete ones recovered: ``{site: [b, m, *shape]}``."""
    z = z.to(target.device)
    continuous = target.layout.constrain(z[..., : target.layout.dim])
    return continuous | target.discrete(z, generator_for(seed, _DISCRETE))


def ensemble_status(
    z: Float[Tensor, "b c n d"], diverging: Tensor, discrete: Float[Tensor, "b c n e"] | None = None
) -> list[Status]:
    """Of each problem: by the split R-hat of its draws and its share of divergences.

    Args:
        z: unconstrained draws.
        discrete: indices of the values of discrete sites; those on which all draws agree have settled.
    """
    if z.shape[2] < 4:
        return [Status.BUDGET_SPENT] * len(z)
    r_hat = _split_r_hat(z).amax(1)  # NaN where nothing moved
    if discrete is not None and discrete.shape[3]:
        agreed = (discrete == discrete[:, :1, :1]).flatten(1, 2).all(1)
        r_hat = torch.maximum(r_hat, torch.where(agreed, 1.0, _split_r_hat(discrete)).amax(1))
    share = diverging.to(z.dtype).mean((1, 2))
    out = []
    for r, bad in zip(r_hat.tolist(), share.tolist(), strict=True):
        settled = r < R_HAT and bad < 0.01
        out.append(
            Status.CONVERGED if settled else Status.DIVERGED if bad > 0.1 or r != r else Status.BUDGET_SPENT
        )
    return out


def _split_r_hat(z: Float[Tensor, "b c n d"]) -> Float[Tensor, "b d"]:
    half = z.shape[2] // 2
    parts = torch.cat((z[:, :, :half], z[:, :, -half:]), 1)
    return (1 - 1 / half + parts.mean(2).var(1) / parts.var(2).mean(1)).sqrt()


def by_chain(x: Float[Tensor, "b m ..."], chains: int, batched: bool) -> np.ndarray:
    """``[problem, chain * draw, ...]`` to ``[chain, draw, (problem), ...]``."""
    x = x.unflatten(1, (chains, -1))
    x = x.movedim(0, 2) if batched else x[0]
    return x.detach().cpu().numpy()


def finish(
    problem: Problem,
    objective: Any,
    *,
    method: str,
    seed: int,
    statuses: Sequence[Status],
    began: float,
    throw: bool,
    stats: Mapping[str, Any] | None = None,
    location: Tensor,
    covariance: Tensor | None = None,
    variance: Tensor | None = None,
    **fields: Any,
) -> Result:
    """The Result of a run.

    Args:
        variance: None: the diagonal of ``covariance``.
        began: ``time.monotonic()`` at its beginning.
        throw: raise instead of returning a result that did not converge.

    Raises:
        InferenceError: if ``throw`` and the run did not converge.
    """
    status = worst(statuses)
    compile_seconds = float(getattr(objective, "compile_seconds", 0.0))
    told: dict[str, Any] = {
        "counts": dict(objective.counts),
        "compile_seconds": compile_seconds,
        "run_seconds": time.monotonic() - began - compile_seconds,
        "notes": list(getattr(objective, "notes", ())),
    }
    told |= stats or {}
    if variance is None and covariance is not None:
        variance = covariance.diagonal(dim1=1, dim2=2)
    if throw and not status.ok:
        raise InferenceError(f"{method} on {problem.name}: {status.value}; {told}")
    return Result(
        status=status,
        statuses=() if problem.batch is None else tuple(statuses),
        seed=seed,
        model=problem.name,
        method=method,
        digest=problem.digest,
        stats=told,
        location=location.detach().cpu().numpy(),
        covariance=None if covariance is None else covariance.detach().cpu().numpy(),
        variance=None if variance is None else variance.detach().cpu().numpy(),
        dims=dict(problem.dims),
        coords=dict(problem.coords),
        **fields,
    )
