"""The training of the network of :mod:`astrozoo.models.lens_finder`, in two stages, and its stamps.

The first stage trains the network with a logistic layer of its own. The second computes the features of
labelled stamps that the network has not seen, which become the :class:`~.lens_reference.Reference`, and
trains the layer on them that the Bayesian regression starts from.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import Dataset

from astrozoo._files import replacing
from astrozoo._trained import Trained
from astrozoo.data.finder_files import read_stamps
from astrozoo.data.finder_stamps import prepare
from astrozoo.data.lens_survey import SURVEYS, LensSurvey
from astrozoo.data.simulate_lens_stamps import simulate_lens_stamps
from astrozoo.errors import InputError
from astrozoo.models.lens_reference import Reference, cropped, describe
from astrozoo.nets.classifier import CHANNELS, FEATURES, Classifier, turned_copies
from astrozoo.types import Problem

__all__ = ["Examples", "NetworkModel", "ReferenceModel", "prepared_examples", "stages", "training"]

_REFERENCE = 4000
"""Labelled stamps of the reference: the regression's 33 weights are then known to some percent."""
_FEWEST = 200
"""Fewest stamps to train on: a tenth is held out, and a tenth becomes the reference."""
_BATCH = 64
_VERSION = 1
"""Of the simulated stamps. It changes with the simulator, so that cached stamps of another one are not
used."""


class Examples(NamedTuple):
    """Prepared stamps with labels.

    Attributes:
        image: in units of the noise; float16 where they are stored.
        label: 1 of lenses.
    """

    image: Float[Tensor, "*n band y x"]
    label: Float[Tensor, "*n"]


class _Turned(Dataset[Examples]):
    """Each stamp in its eight orientations."""

    def __init__(self, examples: Examples, version: str) -> None:
        self.examples, self.version = examples, version

    def __len__(self) -> int:
        return 8 * len(self.examples.label)

    def __getitem__(self, i: int) -> Examples:
        image, label = (x[i // 8] for x in self.examples)
        return Examples(turned_copies(image.float(), i % 8), label.float())


@dataclass(frozen=True, eq=False)
class _Stage:
    """What is stored with the weights of a stage of training.

    Args:
        bands, size, pixel_scale, channels, stride: of stamps and network.
    """

    bands: tuple[str, ...]
    size: int
    pixel_scale: tuple[float, float]
    channels: tuple[int, ...]
    stride: int


@dataclass(frozen=True, eq=False)
class NetworkModel(_Stage):
    """Labels given stamps, by the network with its own logistic layer.

    Args:
        network: its weights are parameters.
    """

    network: Classifier

    def __call__(self, data: Examples) -> None:
        network: Any = pyro.module("network", self.network)
        with pyro.plate("stamp", len(data.label)):
            pyro.sample("label", dist.Bernoulli(logits=network(data.image)), obs=data.label)


@dataclass(frozen=True, eq=False)
class ReferenceModel(_Stage):
    """Labels given features, by a logistic layer with the prior of :class:`~.lens_finder.LensFinder`.

    Args:
        reference: its layer is trained.
    """

    reference: Reference

    def __call__(self, data: Examples) -> None:
        reference: Any = pyro.module("reference", self.reference)
        with pyro.plate("stamp", len(data.label)):
            pyro.sample("label", dist.Bernoulli(logits=reference(data.image)), obs=data.label)


def training(
    *,
    out: Path,
    path: Path | None,
    seed: int,
    device: str = "cpu",
    survey: str = "ground",
    stamps: int = 24_000,
    passes: float = 20.0,
) -> Sequence[Callable[[Trained | None], dict[str, Any]]]:
    """The two stages of training, as arguments of :func:`astrozoo.train`; ``load`` reads the result.

    Args:
        out: folder of the run; simulated stamps are cached in a folder below it.
        path: a folder with stamps in ``lens`` and ``nolens`` to train on. None: simulated stamps.
        seed: of the stamps and of the network's initial weights.
        device: device to train on.
        survey: name of a survey of :data:`~astrozoo.data.lens_survey.SURVEYS`.
        stamps: number of simulated stamps to train on; the reference and those held out come on top.
        passes: how often a stamp is used, in a random orientation each time.

    Raises:
        DataError: the folder has no labelled stamps.
        InputError: the survey is unknown, or there are too few stamps.
    """
    if survey not in SURVEYS:
        raise InputError("survey", repr(survey), f"one of {', '.join(SURVEYS)}")
    chosen = SURVEYS[survey]
    if path is None:
        extra = min(_REFERENCE, max(stamps // 4, 2 * FEATURES))
        everything = prepared_examples(chosen, stamps + 2 * extra, seed, out / "stamps")
    else:
        read = read_stamps(path)
        if read.label is None:
            raise InputError("--data", f"{len(read.names)} stamps without labels", "folders lens and nolens")
        side = min(read.image.shape[-2:]) // 8 * 8
        chosen = replace(chosen, **_like(read.bands, side, chosen))
        image = prepare(cropped(read.image, side), read.names).image
        order = torch.randperm(len(image), generator=torch.Generator().manual_seed(seed))
        everything = Examples(image[order].half(), read.label[order].float())
        extra = len(image) // 10
        stamps = len(image) - 2 * extra
    if stamps < _FEWEST:
        raise InputError("stamps", stamps, f"{_FEWEST} or more to train on")
    return stages(chosen, everything, extra, seed=seed, device=device, passes=passes)


def _like(bands: tuple[str, ...], side: int, survey: LensSurvey) -> dict[str, Any]:
    """Fields of a survey with these bands and this side; the fields of the simulator are not used."""
    n = len(bands)
    return {
        "bands": bands, "size": side, "fwhm": survey.fwhm[:1] * n, "noise": survey.noise[:1] * n,
        "red": (0.0,) * n, "blue": (0.0,) * n,
    }  # fmt: skip


def stages(
    survey: LensSurvey,
    examples: Examples,
    extra: int,
    *,
    seed: int = 0,
    device: str = "cpu",
    passes: float = 20.0,
    channels: Sequence[int] = CHANNELS,
    features: int = FEATURES,
) -> Sequence[Callable[[Trained | None], dict[str, Any]]]:
    """What :func:`training` returns, for given stamps.

    Args:
        examples: prepared stamps. The last ``2 extra`` of them are not trained on: half becomes the
            reference, half is held out.
    """
    trained_on = Examples(*(x[: -2 * extra] for x in examples))
    reference = Examples(*(x[-2 * extra : -extra].float() for x in examples))
    held_out = Examples(*(x[-extra:].float() for x in examples))
    stride = 2 if min(low for low, _ in survey.fwhm) / survey.pixel_scale[0] > 2.5 else 1
    about: dict[str, Any] = {
        "bands": survey.bands, "size": survey.size, "pixel_scale": survey.pixel_scale,
        "channels": tuple(channels), "stride": stride,
    }  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = Classifier(len(survey.bands), channels, features, stride)
    batch = min(_BATCH, len(trained_on.label))
    shared = {"device": device, "gradient_clip": 1.0 * len(trained_on.label)}

    def first(_: Trained | None) -> dict[str, Any]:
        data = _Turned(trained_on, _digest(trained_on))
        model = NetworkModel(**about, network=network)
        return shared | {
            "problem": _problem(model, data),
            "held_out": _problem(model, held_out),
            "steps": max(1, round(passes * len(trained_on.label) / batch)),
            "batch": batch,
            "learning_rate": 2e-3,
            "gradient_clip": 1.0,
        }

    def second(before: Trained | None) -> dict[str, Any]:
        if before is None:
            raise InputError("second stage", "no weights", "those of the first")
        frozen = Classifier(len(survey.bands), channels, features, stride)
        before.load_into(frozen, "model.network")
        frozen.eval().requires_grad_(False)
        described, alike = describe(frozen, reference.image), describe(frozen, held_out.image)
        made = Reference.of(described, reference.label, alike.statistics)
        model = ReferenceModel(**about, reference=made)
        standard = Examples(made.features.clone(), made.label.clone())
        other = Examples((alike.features - made.mean) / made.sd, held_out.label)
        return {
            "problem": _problem(model, standard), "held_out": _problem(model, other), "device": device,
            "steps": 400, "batch": min(256, len(standard.label)), "learning_rate": 3e-2,
        }  # fmt: skip

    return first, second


def _problem(model: NetworkModel | ReferenceModel, data: Examples | Dataset[Examples]) -> Problem:
    plates = {"data": 0} if isinstance(data, Dataset) else {"data.image": 0, "data.label": 0}
    return Problem(model, (data,), name="lens_finder", data_plates={"stamp": plates})


def prepared_examples(survey: LensSurvey, count: int, seed: int, cache: Path | None = None) -> Examples:
    """Simulated stamps, half of them lenses, in units of their noise.

    Args:
        cache: folder in which they are saved.
    """
    settings = repr((sorted(asdict(survey).items()), count, seed, _VERSION))
    path = (
        None if cache is None else cache / f"{hashlib.sha256(settings.encode()).hexdigest()[:16]}.safetensors"
    )
    if path is not None and path.is_file():
        return Examples(**load_file(path))
    drawn = simulate_lens_stamps(survey, count, seed=seed)
    examples = Examples(prepare(drawn.image).image.half(), (drawn.truth.kind == 0).float())
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as partial:
            save_file(examples._asdict(), partial)
    return examples


def _digest(examples: Examples) -> str:
    digest = hashlib.sha256()
    for tensor in examples:
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()
