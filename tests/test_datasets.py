"""Digests of problems whose data are a Dataset."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset

from astrozoo.errors import InputError
from astrozoo.types import Problem

N = 500


def model(x):
    mean = pyro.sample("mean", dist.Normal(x.new_zeros(()), 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mean, 1.0), obs=x)


def digest(data: Any) -> str:
    return Problem(model, (data,), data_plates={"data": {"x": 0}}).digest


@dataclass
class Values(Dataset):
    """Values in memory."""

    x: Any
    scale: float = 1.0
    counter: list[int] = field(default_factory=list)

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return torch.as_tensor(self.x[i]) * self.scale


class Reversed(Values):
    def __getitem__(self, i):
        return super().__getitem__(len(self) - 1 - i)


class Files(Dataset):
    """Values in files, which the attributes only name."""

    def __init__(self, folder):
        self.folder = folder

    def __len__(self):
        return N

    def __getitem__(self, i):
        return torch.tensor(float((self.folder / f"{i}.txt").read_text()))


class Versioned(Files):
    """With a first item, whose dtype a problem reads, and no other."""

    def __init__(self, folder, version):
        super().__init__(folder)
        self.version = version

    def __getitem__(self, i):
        assert i == 0
        return torch.zeros(())


class Augmented(Values):
    def __getitem__(self, i):
        return super().__getitem__(i) + torch.randn(())


class Caching(Values):
    def __getitem__(self, i):
        self.counter.append(i)
        return super().__getitem__(i)


def values(changed=None):
    x = np.arange(float(N))
    if changed is not None:
        x[changed] += 1
    return x


@pytest.mark.parametrize("changed", [0, 1, 101, N - 1])
@pytest.mark.parametrize("wrap", [lambda x: Subset(x, range(N)), lambda x: ConcatDataset([x]), lambda x: x])
def test_every_value_in_memory_counts(changed, wrap):
    """Of three items that were hashed once, those of number 1 and 101 were not."""
    assert digest(wrap(Values(values()))) == digest(wrap(Values(values())))
    assert digest(wrap(Values(values()))) != digest(wrap(Values(values(changed))))


def test_settings_and_code_count():
    digests = {
        digest(Values(values())),
        digest(Values(values(), scale=2.0)),
        digest(Reversed(values())),
        digest(TensorDataset(torch.as_tensor(values()))),
    }
    assert len(digests) == 4


def test_a_sample_of_items_in_files_counts(tmp_path):
    for i, x in enumerate(values()):
        (tmp_path / f"{i}.txt").write_text(str(x))
    before = digest(Files(tmp_path))
    assert digest(Files(tmp_path)) == before
    for i in range(0, N, 7):
        (tmp_path / f"{i}.txt").write_text("0.5")
    assert digest(Files(tmp_path)) != before


def test_a_version_stands_for_the_content(tmp_path):
    first, same, other = (digest(Versioned(tmp_path, version)) for version in ("1", "1", "2"))
    assert first == same != other
    parts = [digest(Subset(Versioned(tmp_path, version), [0])) for version in ("1", "2")]
    assert parts[0] != parts[1]
    with pytest.raises(InputError, match=r"version of the Dataset: got 3, expected a string"):
        digest(Versioned(tmp_path, 3))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Augmented(values()), "items that change as they are read"),
        (lambda: Caching(values()), "attributes that change as they are read"),
        (lambda: Values(values(), counter=(i for i in range(3))), "generator"),
    ],
)
def test_what_has_no_lasting_content_asks_for_a_version(make, message):
    data = make()
    with pytest.raises(InputError, match=rf"(?s)digest of the Dataset .*{message}.*attribute `version`"):
        digest(data)
