"""A learned prior on source galaxies: a small decoder and a flow over its latents.

It stands in until the zoo's galaxy models proper take its place, so it is two things only::

    decoder, prior = learned_source.load()
    z = pyro.sample("source_latent", prior)          # [32]
    image = decoder(z)                               # [64, 64], surface brightness summing to 1

Where a sampler should see independent normals instead of ``z``, draw them and push them through the flow:
``z = prior.transforms[0](u)`` with ``u ~ N(0, I)`` is the same prior, in one pass.

The weights come from ``experiments/train_learned_source.py``: an autoencoder of galaxies drawn by GalSim
(:func:`astrozoo.data.simulate_lens.draw_source`), half of them smooth and half of them clumpy, seen through a
Gaussian of one pixel, their half-light radii 5 to 9 pixels. What is smaller than a pixel's blur, arms,
dust and mergers, it has never seen.
"""

from __future__ import annotations

from importlib.resources import files

import pyro.distributions as dist
import torch
import zuko
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from astrozoo.errors import DataError

__all__ = ["LATENT", "SIZE", "Decoder", "latent_flow", "latent_prior", "load"]

LATENT, SIZE = 32, 64
"""Length of the latent vector; side of the decoded image [px]."""


class Decoder(nn.Module):
    """Latent vectors to images of unit sum, positive everywhere.

    The network gives the logarithm of the brightness; activations are smooth, so that gradients of a log
    density are too.
    """

    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Sequential(nn.Linear(LATENT, 128), nn.SiLU(), nn.Linear(128, 16 * 16 * 16), nn.SiLU())
        self.convolutions = nn.Sequential(
            nn.Conv2d(16, 4 * 8, 3, padding=1),
            nn.PixelShuffle(2),
            nn.SiLU(),
            nn.Conv2d(8, 4 * 8, 3, padding=1),
            nn.PixelShuffle(2),
            nn.SiLU(),
            nn.Conv2d(8, 1, 3, padding=1),
        )

    def log_image(self, z: Float[Tensor, "*b latent"]) -> Float[Tensor, "*b y x"]:
        """Logarithm of :meth:`forward`."""
        hidden = self.dense(z.reshape(-1, LATENT)).reshape(-1, 16, 16, 16)
        return self.convolutions(hidden).flatten(1).log_softmax(-1).reshape(*z.shape[:-1], SIZE, SIZE)

    def forward(self, z: Float[Tensor, "*b latent"]) -> Float[Tensor, "*b y x"]:
        """Surface brightness, summing to 1."""
        return self.log_image(z).exp()


def latent_flow() -> zuko.flows.MAF:
    """The flow over latents, untrained: affine coupling, so that both directions take one pass."""
    return zuko.flows.MAF(LATENT, transforms=6, passes=2, hidden_features=(64, 64), activation=nn.SiLU)


def latent_prior(flow: zuko.lazy.Flow) -> dist.TransformedDistribution:
    """The distribution that a flow describes; its one transform takes standard normals to latents."""
    like = next(flow.parameters())
    # validation looks at values, which cannot be traced
    base = dist.Normal(torch.zeros(LATENT).to(like), torch.ones(LATENT).to(like), validate_args=False)
    return dist.TransformedDistribution(base.to_event(1), [flow.transform().inv], validate_args=False)


def load(
    *, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu"
) -> tuple[Decoder, dist.TransformedDistribution]:
    """The decoder and the prior over its latents, with the weights that come with the package.

    Args:
        dtype: to compute in; the weights are stored in float32.
        device: to compute on.

    Raises:
        DataError: the weights' file is missing or holds other weights.
    """
    decoder, flow = Decoder(), latent_flow()
    path = _weights()
    try:
        with safe_open(path, framework="pt") as held:
            weights = {name: held.get_tensor(name) for name in held.keys()}  # noqa: SIM118
        for part, module in (("decoder", decoder), ("flow", flow)):
            own = {n.removeprefix(f"{part}."): w for n, w in weights.items() if n.startswith(f"{part}.")}
            module.load_state_dict(own)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise DataError(path, f"unusable ({error})", "weights of the learned source") from error
    for module in (decoder, flow):
        module.to(dtype=dtype, device=device).eval().requires_grad_(False)
    return decoder, latent_prior(flow)


def _weights() -> str:
    return str(files("astrozoo.models").joinpath("learned_source.safetensors"))
