"""The trained network of the lens finder, with the labelled stamps that its probabilities rest on.

:class:`Reference` holds, for stamps that the network was not trained on, their features and labels, and the
mean and the inverse covariance of statistics of the network's layers. The distance of a new stamp from that
mean says whether it is like those: see :meth:`Finder.describe`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from astrozoo._trained import Trained
from astrozoo.data.finder_files import LensStamps
from astrozoo.data.finder_stamps import prepare
from astrozoo.data.weights import load_weights
from astrozoo.errors import DataError
from astrozoo.nets.classifier import Classifier, turned_copies

__all__ = ["FALSE_ALARMS", "Described", "Finder", "Reference", "cropped", "describe", "load"]

FALSE_ALARMS = 0.05
"""Fraction of stamps like those of the training that are flagged as unlike them."""
_AT_ONCE = 128
"""Stamps that pass through the network at once, which limits memory to some 100 MB."""
_ORIENTATIONS = 4
"""Orientations of a stamp that features are the mean of. The network does not see half a turn."""
_SHRINKAGE = 1e-3
"""Fraction of the mean variance that is added to the diagonal of the covariance of the statistics, whose
directions of least variance are otherwise rounding errors."""


class Described(NamedTuple):
    """What the network says of stamps.

    Attributes:
        features: standardised, mean over the orientations of a stamp.
        statistics: of the layers, mean over the orientations.
    """

    features: Float[Tensor, "n f"]
    statistics: Float[Tensor, "n s"]


class Reference(nn.Module):
    """Labelled stamps, as buffers that are stored with the network's weights.

    Args:
        stamps: number of labelled stamps.
        features, statistics: numbers that the network gives of a stamp.
    """

    features: Tensor
    label: Tensor
    mean: Tensor
    sd: Tensor
    centre: Tensor
    root: Tensor
    distance: Tensor

    def __init__(self, stamps: int, features: int, statistics: int) -> None:
        super().__init__()
        self.register_buffer("features", torch.zeros(stamps, features))
        self.register_buffer("label", torch.zeros(stamps))
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("sd", torch.ones(features))
        self.register_buffer("centre", torch.zeros(statistics))
        self.register_buffer("root", torch.eye(statistics))
        self.register_buffer("distance", torch.zeros(()))
        self.head = nn.Linear(features, 1)

    def forward(self, features: Float[Tensor, "n f"]) -> Float[Tensor, "n"]:
        """Logits of standardised features, by the most probable weights."""
        return self.head(features)[:, 0]

    def shift(self, statistics: Float[Tensor, "n s"]) -> Float[Tensor, "n"]:
        """Mahalanobis distance from the labelled stamps, over the one that :data:`FALSE_ALARMS` of them
        exceed."""
        whitened = (statistics - self.centre) @ self.root
        return whitened.square().sum(1).sqrt() / self.distance

    @classmethod
    def of(
        cls,
        described: Described,
        label: Float[Tensor, "n"],
        alike: Float[Tensor, "m s"],
    ) -> Reference:
        """The reference of labelled stamps.

        Args:
            described: of these stamps; features are not standardised yet.
            label: 1 of lenses.
            alike: statistics of further stamps of the same kind, from which the threshold follows. The
                distance of the stamps whose mean and covariance are used would be too small.
        """
        features, statistics = described
        reference = cls(len(label), features.shape[1], statistics.shape[1])
        mean, sd = features.mean(0), features.std(0).clamp_min(1e-6)
        centre = statistics.mean(0)
        covariance = (statistics - centre).T.double().cov()
        diagonal = _SHRINKAGE * covariance.diagonal().mean() * torch.eye(len(covariance)).double()
        root = torch.linalg.inv(torch.linalg.cholesky(covariance + diagonal)).T.float()
        values = {
            "features": (features - mean) / sd, "label": label, "mean": mean, "sd": sd,
            "centre": centre, "root": root, "distance": torch.ones(()),
        }  # fmt: skip
        for name, value in values.items():
            getattr(reference, name).copy_(value)
        reference.distance.copy_(reference.shift(alike).quantile(1 - FALSE_ALARMS))
        return reference


@dataclass(frozen=True, eq=False)
class Finder:
    """A network with its reference.

    Args:
        network: trained and frozen.
        reference: see :class:`Reference`.
        size: side of the stamps of the training [px].
        bands: their bands.
        pixel_scale: range of their pixel scales [arcsec].
    """

    network: Classifier
    reference: Reference
    size: int
    bands: tuple[str, ...]
    pixel_scale: tuple[float, float]

    def check(self, stamps: LensStamps) -> None:
        """Check that the network takes these stamps.

        Raises:
            DataError: they have another number of bands, or are smaller than those of the training.
        """
        count, got = len(self.bands), stamps.image.shape
        if got[1] != count:
            expected = (
                f"{count} ({', '.join(self.bands)}), those of the weights; --bands chooses and orders them"
            )
            raise DataError("bands of the stamps", f"{got[1]} ({', '.join(stamps.bands)})", expected)
        if min(got[2:]) < self.size:
            raise DataError(
                "stamps",
                f"{got[2]} x {got[3]} px",
                f"{self.size} px or more, the size of the weights' stamps",
            )

    def describe(self, stamps: LensStamps) -> Described:
        """Features and statistics of the middle of each stamp.

        Raises:
            DataError: see :meth:`check` and :func:`astrozoo.data.finder_stamps.prepare`.
        """
        self.check(stamps)
        image = prepare(cropped(stamps.image, self.size), stamps.names).image
        features, statistics = describe(self.network, image)
        return Described((features - self.reference.mean) / self.reference.sd, statistics)

    def unlike(self, described: Described) -> tuple[Float[Tensor, "n"], Bool[Tensor, "n"]]:
        """Relative distance from the stamps of the training, and whether it is too large to trust a
        result."""
        distance = self.reference.shift(described.statistics)
        return distance, distance > 1

    def labelled(self) -> tuple[Float[Tensor, "n f"], Float[Tensor, "n"]]:
        """Standardised features and labels of the reference, in double precision."""
        return self.reference.features.double(), self.reference.label.double()

    def start(self) -> dict[str, Tensor]:
        """The most probable weights, to start from."""
        head = self.reference.head
        return {"weight": head.weight.detach()[0].double(), "offset": head.bias.detach()[0].double()}


def cropped(image: Float[Tensor, "n band y x"], size: int) -> Float[Tensor, "n band size size"]:
    """The middle of each stamp."""
    top, left = ((n - size) // 2 for n in image.shape[-2:])
    return image[..., top : top + size, left : left + size]


@torch.no_grad()
def describe(network: Classifier, image: Float[Tensor, "n band y x"]) -> Described:
    """Features and statistics of prepared stamps, each the mean over orientations."""
    rows = []
    for part in image.split(_AT_ONCE):
        turns = [network.described(turned_copies(part, k)) for k in range(_ORIENTATIONS)]
        rows.append([torch.stack(column).mean(0) for column in zip(*turns, strict=True)])
    return Described(*(torch.cat(column) for column in zip(*rows, strict=True)))


def load(weights: str | Path | Trained = "lens_finder") -> Finder:
    """The trained network, frozen, in single precision.

    Args:
        weights: the name of the package's weights, a file written by training, or the result of training.

    Raises:
        UnknownNameError: there are no weights of that name.
        DataError: the file is missing, corrupt or of another version, or its weights are of another model.
    """
    trained = weights if isinstance(weights, Trained) else load_weights(weights)
    parts = {name: trained.part(f"model.{name}") for name in ("network", "reference")}
    about: Any = trained.settings.get("model", {})
    if not all(parts.values()) or "bands" not in about:
        raise DataError(
            f"weights of {trained.model!r}", "no network with a reference", "weights of lens_finder"
        )
    network = Classifier(
        len(about["bands"]), about["channels"], parts["reference"]["mean"].numel(), about["stride"]
    )
    stamps, features = parts["reference"]["features"].shape
    reference = Reference(stamps, features, parts["reference"]["centre"].numel())
    trained.load_into(network, "model.network")
    trained.load_into(reference, "model.reference")
    for module in (network, reference):
        module.eval().float().requires_grad_(False)
    return Finder(network, reference, about["size"], tuple(about["bands"]), tuple(about["pixel_scale"]))
