"""A small variational autoencoder of vectors, and data for it."""

from __future__ import annotations

from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import torch
from torch import nn
from torch.utils.data import Dataset

from astrozoo.nets.autoencoder import DenseDecoder, DenseEncoder
from astrozoo.types import Problem

PLATES = {"data": {"x": 0}}
SIZE, LATENT = 12, 2


@dataclass(frozen=True, eq=False)
class Model:
    """z ~ N(0, 1), x ~ N(decoder(z), noise); the noise is a parameter too."""

    decoder: nn.Module

    def __call__(self, x):
        decoder = pyro.module("decoder", self.decoder)
        noise = pyro.param("noise", x.new_tensor(0.5), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x), LATENT), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), noise).to_event(1), obs=x)


class Guide(nn.Module):
    """q(z | x) of an encoder."""

    def __init__(self, problem):
        super().__init__()
        self.encoder = DenseEncoder(SIZE, LATENT, (16,))

    def forward(self, x):
        mean, sd = self.encoder(x)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(mean, sd).to_event(1))


class Rows(Dataset):
    """Rows of a tensor by number."""

    def __init__(self, x):
        self.x = x

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return self.x[i]


def data(n=256, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(LATENT, SIZE, generator=torch.Generator().manual_seed(100))
    z = torch.randn(n, LATENT, generator=generator)
    return z @ mixing + 0.2 * torch.randn(n, SIZE, generator=generator)


def problem(x=None, plates=PLATES):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        decoder = DenseDecoder(SIZE, LATENT, (16,))
    return Problem(Model(decoder), (data() if x is None else x,), name="vae", data_plates=plates)
