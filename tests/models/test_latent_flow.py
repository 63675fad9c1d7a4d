"""Priors of latents: what they learn, their conditions, and the posterior of one galaxy."""

from __future__ import annotations

import math
import warnings
from importlib.resources import files

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import astrozoo
from astrozoo._trainable import Trainable
from astrozoo._trained import Trained
from astrozoo.data.latents import LatentTable
from astrozoo.diagnostics.training import training_report
from astrozoo.errors import CaptureError, DataError, InputError, UnknownNameError
from astrozoo.galaxies.latent_scores import gains
from astrozoo.models import latent_flow
from astrozoo.models.joint_prior import joint
from astrozoo.models.latent_flow import LatentPrior
from astrozoo.types import Problem, Status

WITHIN = {"half_light_radius": 0.3, "magnitude": 22.0, "redshift": 0.7}


def population(n: int, seed: int = 0) -> LatentTable:
    """Two latents: one follows the logarithm of a size, the other is curved along it."""
    g = torch.Generator().manual_seed(seed)
    size = 0.1 * 10 ** torch.rand(n, 1, generator=g)
    first = (size / 0.3).log() + 0.2 * torch.randn(n, 1, generator=g)
    z = torch.cat((first, first**2 + 0.3 * torch.randn(n, 1, generator=g)), 1)
    sd = 0.05 + 0.1 * torch.rand(n, 2, generator=g)
    return LatentTable(z + sd * torch.randn(n, 2, generator=g), sd, size, ("half_light_radius",))


def trained(table: LatentTable, kind: str, steps: int, **settings) -> LatentPrior:
    prior = latent_flow.fitted_to(table, kind, **settings)
    problem = latent_flow.training_problem(prior, table)
    options = {"steps": steps, "batch": 256, "learning_rate": 5e-3, "progress": False}
    return latent_flow.load(weights=astrozoo.train(problem, "posterior", **options))


@pytest.fixture(scope="module")
def shipped():
    return latent_flow.load(dtype=torch.float64)


def test_a_conditional_flow_gains_over_simpler_priors():
    table, held_out = population(2000), population(500, seed=1)
    small = {"transforms": 2, "hidden": (16, 16)}
    priors = {
        "normal": latent_flow.fitted_to(table.only(())),
        "vamp": trained(table.only(()), "vamp", 100, components=16),
        "flow": trained(table.only(()), "realnvp", 120, **small),
        "conditional": trained(table, "realnvp", 120, **small),
    }
    rows = {row["prior"]: row for row in gains(held_out, priors)}
    gain = {name: row["gain over N(0, I) [nat]"] for name, row in rows.items()}
    error = max(row["error"] for row in rows.values())
    assert gain["normal"] + 2 * error < gain["flow"] < gain["conditional"] - 2 * error
    assert gain["normal"] + 2 * error < gain["vamp"]
    # the condition tells the first latent to .2 (and the draws' noise), where it scatters by .7
    z = priors["conditional"].given({"half_light_radius": 0.5}).sample((2000,))
    assert z[:, 0].mean().item() == pytest.approx(math.log(0.5 / 0.3), abs=0.1)
    assert z[:, 0].std().item() == pytest.approx(math.hypot(0.2, 0.15), abs=0.06)


def test_draws_are_trained_on_and_not_means():
    """With equal means, only the posteriors' widths make the prior's: the scatter of one z."""
    n = 400
    table = LatentTable(torch.randn(n, 1) * 1e-3, torch.full((n, 1), 0.5), torch.empty(n, 0))
    prior = trained(table, "vamp", 100, components=4)
    z = prior.given().sample((4000,))
    assert z.std().item() == pytest.approx(0.5, rel=0.15)


def test_the_shipped_prior_is_small_and_conditional(shipped):
    assert files("astrozoo.models").joinpath("latent_flow.safetensors").stat().st_size < 5e6
    assert set(shipped.conditions) == set(WITHIN)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        z = shipped.given(WITHIN).sample((5,))
        many = shipped.given({**WITHIN, "redshift": torch.linspace(0.5, 1, 4)}).sample((5,))
    assert z.shape == (5, shipped.features)
    assert many.shape == (5, 4, shipped.features)


def test_conditions_missing_unknown_or_outside_their_range(shipped):
    low, high = shipped.ranges["magnitude"]
    with pytest.raises(InputError, match=rf"no magnitude.*magnitude of {low:.4g} to {high:.4g}"):
        shipped.given({name: value for name, value in WITHIN.items() if name != "magnitude"})
    with pytest.raises(InputError, match="unknown colour"):
        shipped.given({**WITHIN, "colour": 1.0})
    with pytest.raises(InputError, match="not finite"):
        shipped.given({**WITHIN, "magnitude": math.nan})
    with pytest.warns(UserWarning, match=rf"magnitude 30 is outside .* {low:.4g} to {high:.4g}"):
        shipped.given({**WITHIN, "magnitude": torch.tensor([22.0, 30.0])})
    with pytest.raises(InputError, match="no conditions"):
        LatentPrior(2).given({"magnitude": 22.0})


def test_the_posterior_of_one_galaxy_is_that_of_bayes(shipped):
    """The encoder's posterior under N(0, I), with that prior replaced by the flow's."""
    table, _ = latent_flow.simulate(3)
    problem = latent_flow.problem(table)
    value, sd, conditions = problem.args
    z = torch.randn(7, shipped.features, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    likelihood = dist.Normal(z, sd).log_prob(value).sum(-1)
    mean, width = table.mean[0].double(), table.sd[0].double()
    ratio = (dist.Normal(mean, width).log_prob(z) - dist.Normal(0.0, 1.0).log_prob(z)).sum(-1)
    torch.testing.assert_close(likelihood - likelihood[0], ratio - ratio[0], rtol=1e-4, atol=1e-3)
    noise = shipped.prior(conditions).transform(z)
    density = astrozoo.density.log_density(problem, compile="never")
    jacobian = shipped.prior(conditions).log_prob(z) - dist.Normal(0.0, 1.0).log_prob(noise).sum(-1)
    expected = likelihood + shipped.prior(conditions).log_prob(z)
    torch.testing.assert_close(density.values(noise)[:, 0] + jacobian, expected)


def test_unknown_conditions_are_inferred():
    data, truth = latent_flow.simulate(2, infer_conditions=True)
    problem = latent_flow.problem(data, infer_conditions=True)
    settings = {"draws": 10, "chains": 4, "warmup": 20, "max_steps": 4, "compile": "never"}
    result = astrozoo.infer(problem, "hmc", seed=0, progress=False, **settings)
    assert set(result.draws) == set(truth) == {"noise", "z", *WITHIN}
    for name, (low, high) in latent_flow.load().ranges.items():
        draws = result.draws[name]
        assert low <= draws.min() < draws.max() <= high
        assert abs(draws.mean() - float(truth[name])) < 4 * draws.std()


def test_bad_problems_are_refused(tmp_path):
    data, _ = latent_flow.simulate(0)
    with pytest.raises(InputError, match="a row, 0 to 0"):
        latent_flow.problem(data, galaxy=1)
    with pytest.raises(InputError, match="no redshift"):
        latent_flow.problem(data.only(("half_light_radius", "magnitude")))
    short = LatentTable(data.mean[:, :3], data.sd[:, :3], data.conditions, data.names)
    with pytest.raises(InputError, match="latents of the table"):
        latent_flow.problem(short)
    with pytest.raises(InputError, match="inferred_under"):
        latent_flow.problem(data, inferred_under="prior")
    with pytest.raises(DataError, match="learned_source"):
        latent_flow.load(weights="learned_source")
    settings = {"model": {"features": 2, "kind": "maf"}}
    damaged = Trained({}, Status.BUDGET_SPENT, 0, "latent_flow", settings=settings)
    with pytest.raises(DataError, match="missing"):
        latent_flow.load(weights=damaged)
    with pytest.raises(UnknownNameError, match="vamp"):
        LatentPrior(3, "vampire")
    with pytest.raises(InputError, match="conditions"):
        LatentPrior(3, "vamp", ("magnitude",))
    with pytest.raises(InputError, match="rows"):
        latent_flow.fitted_to(population(2))
    with pytest.raises(InputError, match="20 or more"):
        latent_flow.split(population(10))
    with pytest.raises(InputError, match="latents"):
        latent_flow.training_problem(LatentPrior(3), population(30))


class _Autoencoder(nn.Module):
    """A linear one, of four pixels and two latents, with z ~ N(0, I)."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder = nn.Linear(2, 4)

    def forward(self, images: torch.Tensor) -> None:
        pyro.module("autoencoder", self)
        with pyro.plate("galaxy", len(images)):
            z = pyro.sample("z", dist.Normal(images.new_zeros(2), 1.0).to_event(1))
            pyro.sample("image", dist.Normal(self.decoder(z), 0.1).to_event(1), obs=images)


class _Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, images: torch.Tensor) -> None:
        mean, log_sd = self.layer(images).chunk(2, -1)
        with pyro.plate("galaxy", len(images)):
            pyro.sample("z", dist.Normal(mean, (log_sd - 2).exp()).to_event(1))


def _autoencoder(images: torch.Tensor) -> Problem:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = _Autoencoder()
    plates = {"galaxy": {"images": 0}}
    return Problem(model, (images,), data_plates=plates, guides={"encoder": lambda _: _Encoder()})


def test_prior_and_autoencoder_are_trained_together(tmp_path):
    table = population(600)
    mixing = torch.randn(2, 4, generator=torch.Generator().manual_seed(5))
    images = table.mean @ mixing
    problem, columns = _autoencoder(images), {"half_light_radius": table.conditions[:, 0]}
    prior = LatentPrior(2, "realnvp", ("half_light_radius",), transforms=2, hidden=(8, 8))
    options = {"guide": "encoder", "steps": 150, "batch": 128, "learning_rate": 2e-2, "progress": False}
    alone = astrozoo.train(problem, **options)
    together = astrozoo.train(joint(problem, prior, conditions=columns), **options)
    last = [np.mean(run.curve["elbo"][-3:]) for run in (alone, together)]
    assert last[1] > last[0]
    ends = np.array(prior.ranges["half_light_radius"])
    np.testing.assert_allclose(ends, [table.conditions.min(), table.conditions.max()], rtol=1e-6)
    assert {name for name in together.weights if name.startswith("model.prior.flow")}


def test_another_beta_scales_the_divergence_and_the_report_says_so(tmp_path):
    images = population(40).mean @ torch.ones(2, 4)
    problem, prior = _autoencoder(images), LatentPrior(2, transforms=1, hidden=(4,))
    losses = {}
    for beta in (1.0, 0.25, 1e-9):
        task = joint(problem, prior, beta=beta)
        guide = Trainable(task, task.guides["encoder"], 40)
        torch.manual_seed(0)
        losses[beta] = guide(*task.args).item()
    # the loss is linear in beta
    expected = losses[1e-9] + 0.25 * (losses[1.0] - losses[1e-9])
    assert losses[0.25] == pytest.approx(expected, rel=1e-4)
    assert losses[1.0] != pytest.approx(losses[1e-9], rel=1e-3)
    run = astrozoo.train(joint(problem, prior, beta=0.25), "encoder", steps=2, batch=20, progress=False)
    text = training_report(run, tmp_path / "report.html").read_text()
    assert "multiplied by 0.25: not an ELBO" in text
    with pytest.raises(InputError, match="beta"):
        joint(problem, prior, beta=0.0)
    with pytest.raises(InputError, match="conditions"):
        joint(problem, prior, conditions={"magnitude": torch.zeros(40)})
    with pytest.raises(CaptureError, match="site 'latent'"):
        astrozoo.train(joint(problem, prior, site="latent"), "encoder", steps=2, batch=20, progress=False)
