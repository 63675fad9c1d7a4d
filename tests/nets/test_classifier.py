"""The residual network: shapes, independence of stamps, and orientations."""

from __future__ import annotations

import pytest
import torch

from astrozoo.nets.classifier import Classifier, turned_copies


def network(bands=3, stride=2):
    torch.manual_seed(0)
    return Classifier(bands, (8, 16), 5, stride).double()


@pytest.mark.parametrize(("bands", "stride", "side"), [(3, 2, 48), (1, 1, 32), (4, 2, 40)])
def test_features_and_statistics_have_their_shapes(bands, stride, side):
    features, statistics = network(bands, stride).described(torch.randn(6, bands, side, side).double())
    assert features.shape == (6, 5)
    assert statistics.shape == (6, 2 * (8 + 8 + 16))


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
