"""Shapes, smoothness and capture of the networks."""

from __future__ import annotations

import pytest
import torch

from astrozoo.errors import InputError
from astrozoo.nets.autoencoder import (
    ConvolutionalDecoder,
    ConvolutionalEncoder,
    DenseDecoder,
    DenseEncoder,
    ResidualDecoder,
    ResidualEncoder,
)


@pytest.fixture(autouse=True)
def _seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.mark.parametrize(
    ("encoder", "decoder", "shape"),
    [
        (lambda: ConvolutionalEncoder(32, 5, (4, 8)), lambda: ConvolutionalDecoder(32, 5, (4, 2)), (32, 32)),
        (lambda: ResidualEncoder(32, 5, (4, 8), 1), lambda: ResidualDecoder(32, 5, (8, 4), 1), (32, 32)),
        (lambda: DenseEncoder(20, 5, (16,)), lambda: DenseDecoder(20, 5, (16,)), (20,)),
    ],
)  # fmt: skip
def test_encoder_and_decoder_fit_each_other(encoder, decoder, shape):
    x = torch.rand(3, *shape)
    mean, sd = encoder()(x)
    assert mean.shape == sd.shape == (3, 5)
    assert sd.min() > 0
    net = decoder()
    assert net(mean).shape == (3, *shape)
    assert net(mean.reshape(1, 3, 5)).shape == (1, 3, *shape)
    torch.testing.assert_close(net(mean[0]), net(mean)[0])
    curvature = torch.autograd.functional.hessian(lambda z: net(z).square().sum(), mean[0])
    assert curvature.isfinite().all()
    assert curvature.abs().max() > 0


def test_sd_is_bounded():
    encoder = DenseEncoder(2, 1, ())
    _, sd = encoder(torch.tensor([[1e6, 1e6], [-1e6, -1e6]]))
    assert sd.isfinite().all()
    assert sd.min() > 0


def test_sides_that_do_not_divide_are_refused():
    with pytest.raises(InputError, match="a multiple of 16"):
        ConvolutionalEncoder(40, 2)
    with pytest.raises(InputError, match="a multiple of 16"):
        ResidualDecoder(40, 2)
    with pytest.raises(InputError, match="a multiple of 4"):
        ConvolutionalDecoder(30, 2)
