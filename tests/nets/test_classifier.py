"""The residual network: shapes, independence of stamps, and orientations."""

from __future__ import annotations

import pytest
import torch

from astrozoo.nets.classifier import Classifier, polar, turned_copies


def network(bands=3, stride=2):
    torch.manual_seed(0)
    return Classifier(bands, (8, 16), 5, stride).double()


@pytest.mark.parametrize(("bands", "stride", "side"), [(3, 2, 48), (1, 1, 32), (4, 2, 40)])
def test_features_and_statistics_have_their_shapes(bands, stride, side):
    features, statistics = network(bands, stride).described(torch.randn(6, bands, side, side).double())
    assert features.shape == (6, 5)
    assert statistics.shape == (6, 2 * (8 + 8 + 16) + 12 * bands)


def test_a_stamp_has_the_same_logit_alone_and_in_any_minibatch():
    net, image = network(), torch.randn(5, 3, 32, 32).double()
    torch.testing.assert_close(net(image)[3:4], net(image[3:4]), rtol=1e-12, atol=1e-14)


def test_the_logit_is_linear_in_the_features():
    net, image = network(), torch.randn(4, 3, 32, 32).double()
    logit = net.features(image) @ net.last.weight[0] + net.last.bias
    torch.testing.assert_close(net(image), logit, rtol=1e-12, atol=0)


def test_gradients_are_those_of_finite_differences():
    net, image = network(1, 1), torch.randn(2, 1, 16, 16).double()
    image.requires_grad_()
    direction = torch.randn_like(image)
    (gradient,) = torch.autograd.grad(net(image).sum(), image)
    step = 1e-6
    with torch.no_grad():
        slope = (net(image + step * direction).sum() - net(image - step * direction).sum()) / (2 * step)
    torch.testing.assert_close((gradient * direction).sum(), slope, rtol=1e-6, atol=1e-8)


def test_the_eight_orientations_are_different_and_complete():
    image = torch.randn(1, 2, 6, 6)
    turned = [turned_copies(image, k) for k in range(8)]
    assert len({tuple(t.flatten().tolist()) for t in turned}) == 8
    quarter_turns = [image.rot90(k, (-2, -1)) for k in range(4)]
    expected = quarter_turns + [t.flip(-1) for t in quarter_turns]
    assert all(any(torch.equal(t, e) for e in expected) for t in turned)


def test_half_a_turn_does_not_matter():
    net, image = network(), torch.randn(3, 3, 32, 32).double()
    for ours, theirs in zip(net.described(image), net.described(image.flip(-2, -1)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_polar_coordinates_are_radius_and_azimuth():
    side = 24
    offset = torch.arange(side).double() - (side - 1) / 2
    x, y = offset.expand(side, side), offset[:, None].expand(side, side)
    both = polar(torch.stack((x, y))[None])[0]  # linear functions are interpolated exactly
    radius = torch.arange(side // 2).double()[:, None] + 0.5
    angle = torch.arange(side).double() * (2 * torch.pi / side)
    inside = slice(0, side // 2 - 1)
    torch.testing.assert_close(both[0, inside], (radius * angle.cos())[inside], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(both[1, inside], (radius * angle.sin())[inside], rtol=1e-12, atol=1e-12)


def test_statistics_of_pixels_are_quantiles_and_differences():
    net, image = network(1), torch.zeros(1, 1, 16, 16).double()
    image[0, 0, 3, 4] = 50.0
    statistics = net.described(image)[1][0, 16:28]  # after two moments of eight channels
    expected = torch.tensor([0.0] * 5 + [50.0]).double().asinh()
    torch.testing.assert_close(statistics[:6], expected)
    torch.testing.assert_close(statistics[6:], torch.full((6,), 1e-3).double().log())
