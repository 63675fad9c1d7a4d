"""Galaxy images by a variational autoencoder whose decoder gives each pixel's mean and variance.

    z ~ N(0, I_8)
    x | z ~ N(f_mu(z), diag(noise^2 + f_sigma(z)^2))

``x`` is a stamp of one galaxy in the units of :mod:`astrozoo.data.stamps`, ``noise`` the SD of its detector
noise, and ``f_mu`` and ``f_sigma`` are dense networks with exponential outputs. ``f_sigma`` is what the
decoder cannot reproduce of real galaxies.

The weights are trained in two stages (:mod:`astrozoo.models.galaxy_vae_training`). Both maximise an ELBO of
this model. In the first, ``f_sigma`` is one number per galaxy; in the second, only ``f_sigma`` is trained,
with a value in each pixel. If both are trained at once, a large ``f_sigma`` in the core excuses a poor
``f_mu`` there.

References:
    Regier, McAuliffe & Prabhat 2015, "A deep generative model for astronomical images of galaxies".
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor

from astrozoo._trained import Trained
from astrozoo.data.stamps import Pixels, Stamps, read_images, standardise
from astrozoo.data.weights import load_weights
from astrozoo.errors import DataError, InputError
from astrozoo.nets.galaxy_vae import LATENT, SIZE, Decoder, Encoder, Kind, Nets
from astrozoo.types import Problem

__all__ = [
    "LATENT",
    "SIZE",
    "GalaxyVAE",
    "encode",
    "load",
    "problem",
    "read",
    "simulate",
    "training_problem",
]


@dataclass(frozen=True, eq=False)
class GalaxyVAE:
    """The generative model of one galaxy, or of a plate of galaxies for training.

    Args:
        nets: their weights are parameters unless they are frozen. The model reads the decoder alone. Its
            guides read the encoder.
    """

    nets: Nets

    def __call__(self, stamp: Pixels) -> None:
        decoder: Any = pyro.module("decoder", self.nets.decoder)
        if stamp.image.ndim == 3:
            with pyro.plate("galaxy", len(stamp.image)):
                pixels = self.pixels(decoder, stamp)
                # summed before the plate's scale multiplies it: one number per galaxy
                pyro.sample("image", pixels.to_event(2), obs=stamp.image)
            return
        pixels = self.pixels(decoder, stamp)
        ny, nx = stamp.image.shape
        with pyro.plate("y", ny, dim=-2), pyro.plate("x", nx, dim=-1):
            pyro.sample("image", pixels, obs=stamp.image)

    def pixels(self, decoder: Decoder, stamp: Pixels) -> Any:
        """Sample the latents, and return the distribution of the pixels."""
        image = stamp.image
        shape = (*image.shape[:-2], self.nets.decoder.latent)
        z = pyro.sample("z", dist.Normal(image.new_zeros(shape), image.new_ones(())).to_event(1))
        mean, variance = decoder(z)
        sd = (stamp.noise[..., None, None] ** 2 + variance).sqrt()
        return dist.Normal(mean, sd).mask(stamp.used)


def load(
    weights: str | Path | Trained = "galaxy_vae",
    *,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> Nets:
    """The trained networks, frozen.

    Args:
        weights: the name of the package's weights, a file written by training, or the result of training.
        dtype: dtype of the networks; the shipped weights are stored in float16.

    Raises:
        UnknownNameError: there are no weights of that name.
        DataError: the file is missing, corrupt or of another version, or its weights are of another model.
    """
    trained = weights if isinstance(weights, Trained) else load_weights(weights)
    nets = _untrained(trained)
    trained.load_into(nets.decoder, "model.decoder")
    trained.load_into(nets.encoder, "guide.encoder")
    for module in (nets.decoder, nets.encoder):
        module.eval().requires_grad_(False)
    return nets.to(dtype, device)


def _untrained(trained: Trained) -> Nets:
    """Networks of the sizes of weights, which follow from their shapes."""
    decoder, encoder = trained.part("model.decoder"), trained.part("guide.encoder")
    if "log_mean" not in decoder or not encoder:
        raise DataError(f"weights of {trained.model!r}", "no decoder and encoder", "weights of galaxy_vae")
    size = len(decoder["log_mean"])
    first_layers: dict[str, Kind] = {"mean.dense.0.weight": "convolutional", "mean.linear.weight": "residual"}
    for name, kind in first_layers.items():
        if name in decoder:
            latent = decoder[name].shape[1]
            return Nets(Decoder(size, latent, kind=kind), Encoder(size, latent, kind=kind))
    layers = sorted(
        (int(name.split(".")[2]), tuple(w.shape))
        for name, w in decoder.items()
        if name.startswith("mean.network.") and name.endswith("weight")
    )
    widths, latent = tuple(shape[0] for _, shape in layers[:-1]), layers[0][1][1]
    return Nets(Decoder(size, latent, widths), Encoder(size, latent, widths))


def problem(data: Stamps, *, weights: str | Path | Trained | Nets = "galaxy_vae") -> Problem:
    """The latents of each galaxy, under fixed networks.

    Args:
        data: one galaxy, or several, which make a batch.
        weights: see :func:`load`; or networks.

    Raises:
        DataError: there are no galaxies, or the stamps are not of the networks' size.
    """
    nets = weights if isinstance(weights, Nets) else load(weights)
    data = _checked(data, nets)
    mean = encode(nets, data)[0]
    several = len(data) > 1
    return Problem(
        GalaxyVAE(nets),
        (data.pixels if several else Pixels(*(x[0] for x in data.pixels)),),
        name="galaxy_vae",
        batch=len(data) if several else None,
        start={"z": mean if several else mean[0]},
        dims={"z": ("latent",)},
        images=("image",),
        guides={
            "encoder": "astrozoo.guides.galaxy_vae:per_image",
            "encoder_iaf": "astrozoo.guides.galaxy_vae:per_image_iaf",
        },
    )


@torch.no_grad()
def encode(nets: Nets, data: Stamps) -> tuple[Float[Tensor, "n latent"], Float[Tensor, "n latent"]]:
    """Means and SDs of q(z | x) of each galaxy."""
    data = _checked(data, nets)
    return nets.encoder(data.pixels.image, data.pixels.noise)


def _checked(data: Stamps, nets: Nets) -> Stamps:
    if not len(data):
        raise DataError("stamps", "none", "at least one galaxy")
    size, shape = nets.decoder.size, tuple(data.pixels.image.shape[1:])
    if shape != (size, size):
        raise DataError(
            "stamps", f"shape {shape}", f"{(size, size)}, the size that the weights are trained on"
        )
    return data.to(nets.decoder.log_mean.dtype)


def simulate(
    seed: int = 0,
    *,
    galaxies: int = 1,
    noise: float = 0.5,
    weights: str | Path | Trained | Nets = "galaxy_vae",
) -> tuple[Stamps, dict[str, Tensor]]:
    """Galaxies drawn from the model, and their latents.

    Args:
        noise: SD of the noise of a pixel, in units of the rms of a galaxy's light over the stamp.
    """
    if galaxies < 1:
        raise InputError("galaxies", galaxies, "1 or more")
    if not noise > 0:
        raise InputError("noise", noise, "a number above 0")
    nets = weights if isinstance(weights, Nets) else load(weights)
    generator = torch.Generator().manual_seed(seed)
    like = nets.decoder.log_mean
    z = torch.randn(galaxies, nets.decoder.latent, generator=generator, dtype=like.dtype)
    with torch.no_grad():
        mean, variance = nets.decoder(z)
    normals = torch.randn(mean.shape, generator=generator, dtype=like.dtype)
    image = mean + (noise**2 + variance).sqrt() * normals
    pixels = Pixels(
        image, torch.full((galaxies,), noise, dtype=like.dtype), torch.ones_like(image, dtype=torch.bool)
    )
    names = tuple(str(i) for i in range(galaxies))
    ones = torch.ones(galaxies, dtype=like.dtype)
    stamps = Stamps(pixels, ones, torch.zeros(galaxies, dtype=torch.long), names)
    return stamps, {"z": z if galaxies > 1 else z[0]}


def read(
    path: Path,
    *,
    noise: float | None = None,
    size: int = SIZE,
    subtract_sky: bool = False,
    first: int = 0,
    count: int | None = None,
) -> Stamps:
    """Stamps of a FITS or NumPy file, or of a folder of FITS files, of any sizes.

    Args:
        path: see :func:`astrozoo.data.stamps.read_images`.
        noise: SD of the noise of a pixel, in the file's unit. None: the file's ``noise_rms``, or measured
            at the border of each stamp.
        size: side of the frame that stamps are cropped or padded to: that of the weights [px].
        subtract_sky: subtract the median of each stamp's border.
        first, count: which stamps; all by default.

    Raises:
        DataError: the file is missing or unreadable, has no images, or see
            :func:`astrozoo.data.stamps.standardise`.
    """
    images, names, stated = read_images(path)
    part = slice(first, None if count is None else first + count)
    if not images[part]:
        raise DataError(str(path), f"{len(images)} stamps", f"more than {first}")
    given = noise if noise is not None else None if stated is None else stated[part]
    return standardise(images[part], size, given, names=names[part], subtract_sky=subtract_sky)


def training_problem(pixels: Pixels, nets: Nets) -> Problem:
    """The problem of fitting networks to galaxies.

    Args:
        pixels: the galaxies.
        nets: networks, of which those that require gradients are trained.
    """
    return Problem(
        GalaxyVAE(nets),
        (pixels,),
        name="galaxy_vae",
        data_plates={"galaxy": {"stamp": 0}},
        guides={"encoder": "astrozoo.guides.galaxy_vae:amortised"},
    )
