"""Derivatives of mixture images against automatic differentiation, and renders against their definition."""

import pytest
import torch

from astrozoo.physics.gaussians import MixturePsf, curvature, jet, render

FLOAT = torch.float64


@pytest.fixture
def scene():
    g = torch.Generator().manual_seed(3)
    yy, xx = torch.meshgrid(torch.arange(13), torch.arange(11), indexing="ij")
    pixels = torch.stack((xx.flatten(), yy.flatten())).to(FLOAT)
    psf = MixturePsf(
        torch.tensor([[0.7, 0.3], [0.6, 0.4]], dtype=FLOAT),
        0.2 * torch.randn(2, 2, 2, generator=g, dtype=FLOAT),
        torch.tensor([[[1.0, 0.1, 1.2], [4.0, -0.3, 3.5]], [[1.5, 0.0, 1.4], [5.0, 0.3, 4.5]]], dtype=FLOAT),
    )
    return {
        "pixels": pixels.expand(2, 2, -1),
        "mu": torch.tensor([[5.2, 6.1], [4.7, 6.3]], dtype=FLOAT),
        "q": torch.tensor([[2.0, 0.4, 1.5], [1.8, -0.2, 2.5]], dtype=FLOAT),
        "variances": torch.tensor([0.1, 0.8, 2.0], dtype=FLOAT),
        "psf": psf,
        "groups": torch.tensor([[0.2, 0.8, 0.0], [0.0, 0.3, 0.7]], dtype=FLOAT),
    }


def test_a_render_is_the_sum_of_its_gaussians(scene):
    s = scene
    got = render(s["pixels"], s["mu"], s["q"], s["groups"][0], s["variances"], s["psf"])
    want = torch.zeros_like(got)
    for i in range(2):
        for k in range(2):
            for j in range(3):
                p, q, v = s["psf"].covariances[i, k], s["q"][i], s["variances"][j]
                xx, xy, yy = p + v * q
                normal = torch.distributions.MultivariateNormal(
                    s["mu"][i] + s["psf"].means[i, k], torch.stack((xx, xy, xy, yy)).reshape(2, 2)
                )
                want[i] += (
                    s["groups"][0, j] * s["psf"].weights[i, k] * normal.log_prob(s["pixels"][i].T).exp()
                )
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-16)


def test_first_and_second_derivatives_equal_autodiff(scene):
    s = scene
    mix = torch.tensor([[0.3, 0.7], [0.9, 0.1]], dtype=FLOAT)
    got, rings = jet(s["pixels"], s["mu"], s["q"], s["groups"], mix, s["variances"], s["psf"])
    weights = torch.randn(s["pixels"].shape[0], s["pixels"].shape[-1], dtype=FLOAT)
    gradient, hessian = curvature(rings, s["groups"], mix, s["variances"], weights)
    for i in range(2):
        psf = MixturePsf(*(t[i] for t in s["psf"]))

        def image(t, amplitudes, i=i, psf=psf):
            return render(s["pixels"][i], t[:2], t[2:], amplitudes, s["variances"], psf)

        def weighted(t, amplitudes, i=i, image=image):
            return image(t, amplitudes) @ weights[i]

        t = torch.cat((s["mu"][i], s["q"][i]))
        for g, amplitudes in enumerate(s["groups"]):
            torch.testing.assert_close(got.images[i, g], image(t, amplitudes), rtol=1e-12, atol=1e-16)
            slope = torch.func.grad(weighted)(t, amplitudes)
            torch.testing.assert_close(gradient[i, g], slope, rtol=1e-10, atol=1e-13)
        mixed = mix[i] @ s["groups"]
        slopes = torch.func.jacrev(image)(t, mixed).T
        torch.testing.assert_close(got.slopes[i], slopes, rtol=1e-11, atol=1e-14)
        bend = torch.func.jacrev(torch.func.grad(weighted))(t, mixed)
        torch.testing.assert_close(hessian[i], bend, rtol=1e-10, atol=1e-12)
