"""Galaxy images by a variational autoencoder whose decoder gives each pixel's mean and variance.

    z ~ N(0, I_8)
    x | z ~ N(f_mu(z), diag(noise^2 + f_sigma(z)^2))

``x`` is a stamp of one galaxy in the units of :mod:`astrozoo.data.stamps`, ``noise`` the SD of its detector
noise, and ``f_mu`` and ``f_sigma`` are dense networks with exponential outputs. ``f_sigma`` is what the
decoder cannot reproduce of real galaxies.

The weights are trained in two stages (:func:`training`). Both maximise an ELBO of this model. In the first,
``f_sigma`` is one number per galaxy; in the second, only ``f_sigma`` is trained, with a value in each
pixel. If both are trained at once, a large ``f_sigma`` in the core excuses a poor ``f_mu`` there.

References:
    Regier, McAuliffe & Prabhat 2015, "A deep generative model for astronomical images of galaxies".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor, nn

from astrozoo._trained import Trained
from astrozoo.data.stamps import Pixels, Stamps, read_images, standardise
from astrozoo.data.weights import load_weights
from astrozoo.errors import DataError, InputError
from astrozoo.nets.autoencoder import (
    ConvolutionalDecoder,
    ConvolutionalEncoder,
    DenseDecoder,
    DenseEncoder,
)
from astrozoo.types import Problem

__all__ = [
    "LATENT",
    "SIZE",
    "Decoder",
    "Encoder",
    "GalaxyVAE",
    "Nets",
    "encode",
    "load",
    "of_second_stage",
    "problem",
    "read",
    "simulate",
    "training",
    "training_problem",
    "untrained",
]

LATENT = 8
"""Length of the latent vector, as in Regier et al. 2015."""
SIZE = 69
"""[px] Side of a stamp, as in Regier et al. 2015."""
HIDDEN = (128, 128)
"""Widths of the hidden layers, as in Regier et al. 2015."""
_FIRST_SD = 0.3
"""f_sigma of untrained networks, in units of the rms of a galaxy's light."""
_BLOCK = 3
"""[px] Side of the blocks of pixels that the dense encoder averages: about the width of the PSF."""
_WHOLE = 32
"""Width of the hidden layer of the network for the variance of a whole galaxy."""
_DARKEST = 0.02
"""Least brightness of the mean galaxy at which training starts, in units of the rms of a galaxy's light.
Where f_mu is much less, its gradient vanishes."""
_LOG_RANGE = (-12.0, 6.0)
"""Range of the logarithms of the decoder's outputs. It keeps their exponentials finite in single precision.
The brightest pixel of a galaxy is about e^4 in units of its rms."""

_CROPPED = 4
"""One simulated galaxy in this number is cropped, to half of the side or more. Catalogues crop stamps to
the size of the galaxy, and the encoder then sees padding."""
_FEWEST_GALAXIES = 20
"""Fewest galaxies to train on: one in twenty is not trained on."""

Kind = Literal["dense", "convolutional"]


def _padded(size: int) -> int:
    """Side of the image that a convolutional network has for a stamp: a multiple of 16."""
    return -(-size // 16) * 16


class Decoder(nn.Module):
    """f_mu and f_sigma^2: latents to the mean of each pixel and its variance beside that of the noise.

    Args:
        size: side of a stamp [px].
        latent: length of the latent vector.
        hidden: widths of the hidden layers of dense networks.
        kind: of the networks.
        per_pixel: whether the variance differs between pixels. Otherwise a galaxy has one.
    """

    def __init__(
        self,
        size: int = SIZE,
        latent: int = LATENT,
        hidden: Sequence[int] = HIDDEN,
        kind: Kind = "dense",
        per_pixel: bool = True,
    ) -> None:
        super().__init__()
        self.size, self.latent, self.kind, self.per_pixel = size, latent, kind, per_pixel
        self.mean, self.variance = (self._network(hidden) for _ in range(2))
        self.whole_variance = DenseDecoder(1, latent, (_WHOLE,))
        self.log_mean = nn.Parameter(torch.zeros(size, size))
        self.log_variance = nn.Parameter(torch.zeros(size, size))
        with torch.no_grad():
            self.whole_variance.network[-1].bias.fill_(2 * math.log(_FIRST_SD))  # type: ignore[operator,union-attr]

    def _network(self, hidden: Sequence[int]) -> nn.Module:
        if self.kind == "convolutional":
            return ConvolutionalDecoder(_padded(self.size), self.latent)
        return DenseDecoder(self.size**2, self.latent, hidden)

    def _image(self, network: nn.Module, z: Tensor) -> Tensor:
        if self.kind == "dense":
            return network(z).reshape(*z.shape[:-1], self.size, self.size)
        edge = (_padded(self.size) - self.size) // 2
        return network(z)[..., edge : edge + self.size, edge : edge + self.size]

    def forward(
        self, z: Float[Tensor, "*b latent"]
    ) -> tuple[Float[Tensor, "*b y x"], Float[Tensor, "*b y x"]]:
        """Mean, and variance without that of the noise."""
        mean = (self.log_mean + self._image(self.mean, z)).clamp(*_LOG_RANGE)
        variance = self.whole_variance(z)[..., None]
        if self.per_pixel:
            variance = variance + self.log_variance + self._image(self.variance, z)
        return mean.exp(), variance.clamp(*_LOG_RANGE).exp()


class Encoder(nn.Module):
    """A stamp and its noise to the mean and SD of each latent in q(z | x).

    The input of a dense network is the middle of the stamp, the whole stamp in blocks of 3 x 3 pixels, and
    the logarithm of the noise. The blocks are a third of all pixels and fewer weights, so that the network
    learns the noise of the training set less. An arcsinh compresses bright pixels.

    Args:
        size, latent, hidden, kind: as those of :class:`Decoder`.
    """

    def __init__(
        self,
        size: int = SIZE,
        latent: int = LATENT,
        hidden: Sequence[int] = HIDDEN,
        kind: Kind = "dense",
    ) -> None:
        super().__init__()
        self.size, self.kind = size, kind
        self.edge = size // 4
        if kind == "dense":
            inputs = (size - 2 * self.edge) ** 2 + (-(-size // _BLOCK)) ** 2 + 1
            self.network: nn.Module = DenseEncoder(inputs, latent, hidden)
        else:
            self.network = ConvolutionalEncoder(_padded(size), latent)

    def forward(
        self, image: Float[Tensor, "b y x"], noise: Float[Tensor, "b"]
    ) -> tuple[Float[Tensor, "b latent"], Float[Tensor, "b latent"]]:
        """Means and SDs."""
        if self.kind == "convolutional":
            before = (_padded(self.size) - self.size) // 2
            after = _padded(self.size) - self.size - before
            return self.network(nn.functional.pad(_compressed(image), (before, after, before, after)))
        inside = slice(self.edge, self.size - self.edge)
        missing = -self.size % _BLOCK
        blocks = nn.functional.avg_pool2d(nn.functional.pad(image, (0, missing, 0, missing))[:, None], _BLOCK)
        parts = (_compressed(image[:, inside, inside]), _compressed(3 * blocks[:, 0]), noise.log())
        return self.network(torch.cat([part.reshape(len(image), -1) for part in parts], 1))


def _compressed(image: Tensor) -> Tensor:
    return (image / 2).asinh()


@dataclass(frozen=True, eq=False)
class Nets:
    """The networks of a trained model.

    Args:
        decoder: f_mu and f_sigma^2.
        encoder: q(z | x).
    """

    decoder: Decoder
    encoder: Encoder

    def to(self, dtype: torch.dtype, device: torch.device | str = "cpu") -> Nets:
        """The networks, converted in place."""
        for module in (self.decoder, self.encoder):
            module.to(dtype=dtype, device=device)
        return self


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
    if "mean.dense.0.weight" in decoder:
        latent = decoder["mean.dense.0.weight"].shape[1]
        return Nets(Decoder(size, latent, kind="convolutional"), Encoder(size, latent, kind="convolutional"))
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
        guides={"encoder": "astrozoo.guides.galaxy_vae:per_image"},
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


def untrained(
    pixels: Pixels,
    *,
    latent: int = LATENT,
    hidden: Sequence[int] = HIDDEN,
    kind: Kind = "dense",
    seed: int = 0,
) -> Nets:
    """Networks with random weights, whose f_mu is near the mean of these galaxies.

    Raises:
        InputError: ``kind`` is not a kind of networks.
    """
    if kind not in get_args(Kind):
        raise InputError("nets", repr(kind), f"one of {', '.join(get_args(Kind))}")
    size = pixels.image.shape[-1]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        nets = Nets(Decoder(size, latent, hidden, kind, per_pixel=False), Encoder(size, latent, hidden, kind))
    with torch.no_grad():
        nets.decoder.log_mean.copy_(pixels.image.mean(0).clamp_min(_DARKEST).log())
    return nets


def of_second_stage(nets: Nets) -> Nets:
    """The networks of the first stage, changed in place: f_sigma alone is trained, with a value in each
    pixel."""
    nets.encoder.requires_grad_(False)
    nets.decoder.requires_grad_(False).per_pixel = True
    decoder = nets.decoder
    for part in (decoder.variance, decoder.whole_variance, decoder.log_variance):
        part.requires_grad_(True)
    return nets


def training(
    *,
    out: Path,
    path: Path | None,
    seed: int,
    device: str = "cpu",
    galaxies: int = 16_000,
    size: int = SIZE,
    nets: Kind = "dense",
) -> Sequence[Callable[[Trained | None], dict[str, Any]]]:
    """The two stages of training, as arguments of :func:`astrozoo.train`; ``load`` reads the result.

    Args:
        out: folder of the run; simulated galaxies are cached in a folder below it.
        path: stamps to train on (:func:`read`). None: galaxies drawn by GalSim.
        seed: of the galaxies and of the networks' initial weights.
        device: device to train on.
        galaxies: number of simulated galaxies.
        size: side of the stamps [px].
        nets: "dense" (Regier et al. 2015) or "convolutional".

    Raises:
        DataError: if the file has no stamps.
        InputError: if there are fewer than 20 galaxies.
    """
    stamps = (
        simulated_stamps(galaxies, seed, size, out / "galaxies") if path is None else read(path, size=size)
    )
    if len(stamps) < _FEWEST_GALAXIES:
        raise InputError("galaxies", len(stamps), f"{_FEWEST_GALAXIES} or more")
    held_out = max(1, len(stamps) // 20)
    return stages(stamps[:-held_out], stamps[-held_out:], seed=seed, device=device, kind=nets)


def survey(size: int = SIZE) -> Any:
    """The :class:`~astrozoo.data.galaxy_survey.GalaxySurvey` that the shipped weights are trained on.

    The PSF and the pixels are those of HST's camera ACS. Galaxies fit into the stamp.
    """
    from astrozoo.data.galaxy_survey import GalaxySurvey, PsfRange

    return GalaxySurvey(
        size=size,
        pixel_scale=0.03,
        psf=PsfRange(fwhm=(0.08, 0.12)),
        snr=(20.0, 500.0),
        radius=(0.08, 0.45),
        centre_scatter=1.5,
    )


def simulated_stamps(galaxies: int, seed: int, size: int = SIZE, cache: Path | None = None) -> Stamps:
    """Stamps of galaxies that GalSim draws for :func:`survey`, some of them cropped as catalogues crop
    stamps.

    Args:
        cache: folder in which drawn galaxies are saved.
    """
    from astrozoo.data.simulate_galaxies import simulate_galaxies

    drawn = simulate_galaxies(survey(size), galaxies, seed=seed, cache=cache)
    sides = torch.randint(size // 2, size, (galaxies,), generator=torch.Generator().manual_seed(seed))
    images = []
    for i, image in enumerate(drawn.image.numpy()):
        edge = 0 if i % _CROPPED else (size - int(sides[i])) // 2
        images.append(image[edge : size - edge, edge : size - edge])
    return standardise(images, size, drawn.noise_rms.numpy())


def stages(
    stamps: Stamps,
    held_out: Stamps,
    *,
    seed: int = 0,
    device: str = "cpu",
    kind: Kind = "dense",
    steps: tuple[int, int] = (12_000, 2000),
    latent: int = LATENT,
    hidden: Sequence[int] = HIDDEN,
) -> Sequence[Callable[[Trained | None], dict[str, Any]]]:
    """What :func:`training` returns, for given galaxies.

    Args:
        held_out: galaxies whose ELBO is in the curve.
        steps: of the two stages.
        latent, hidden, kind: see :class:`Decoder`.
    """
    shared = {"guide": "encoder", "device": device, "batch": min(64, len(stamps)), "gradient_clip": 1e4}

    def first(_: Trained | None) -> dict[str, Any]:
        nets = untrained(stamps.pixels, latent=latent, hidden=hidden, kind=kind, seed=seed)
        return of(nets) | {"steps": steps[0], "learning_rate": 4e-3}

    def second(before: Trained | None) -> dict[str, Any]:
        if before is None:
            raise InputError("second stage", "no weights", "those of the first")
        return of(of_second_stage(load(before, dtype=torch.float32))) | {
            "steps": steps[1],
            "learning_rate": 1e-3,
        }

    def of(nets: Nets) -> dict[str, Any]:
        problems = (training_problem(data, nets) for data in (stamps.pixels, held_out.pixels))
        return dict(zip(("problem", "held_out"), problems, strict=True)) | shared

    return first, second
