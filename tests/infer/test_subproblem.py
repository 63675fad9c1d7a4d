from __future__ import annotations

import pytest
import torch

from astrozoo.infer._subproblem import subproblem_dense, subproblem_krylov


def _model(g, H, s):
    return (g * s).sum(-1) + ((H @ s[..., None])[..., 0] * s).sum(-1) / 2


def _brute_force(g, H, radius, n=400_001):
    """The best of a fine grid of the disc's boundary and of its interior's stationary point."""
    angle = torch.linspace(0, 2 * torch.pi, n, dtype=g.dtype)
    s = radius * torch.stack((angle.cos(), angle.sin()), -1)
    best = _model(g, H, s).max()
    newton = torch.linalg.solve(-H, g)
    if torch.linalg.eigvalsh(H).max() < 0 and newton.norm() <= radius:
        best = torch.maximum(best, _model(g, H, newton))
    return best


def _random(seed, b, p):
    generator = torch.Generator().manual_seed(seed)
    H = torch.randn(b, p, p, generator=generator, dtype=torch.float64)
    return torch.randn(b, p, generator=generator, dtype=torch.float64), H + H.mT, generator


@pytest.mark.parametrize("scale", [1e-3, 0.1, 1.0, 30.0])
def test_dense_matches_brute_force_in_two_dimensions(scale):
    g, H, generator = _random(1, 12, 2)
    H[:4] = -H[:4] @ H[:4].mT - 0.1 * torch.eye(2, dtype=H.dtype)
    radius = scale * (0.5 + torch.rand(12, generator=generator, dtype=torch.float64))
    s, gain = subproblem_dense(g, H, radius)
    assert (s.norm(dim=1) <= radius * (1 + 1e-9)).all()
    torch.testing.assert_close(gain, _model(g, H, s))
    best = torch.stack([_brute_force(*row) for row in zip(g, H, radius, strict=True)])
    torch.testing.assert_close(gain, best, rtol=1e-6, atol=1e-12)


def test_dense_beats_every_random_point_in_ten_dimensions():
    g, H, generator = _random(2, 6, 10)
    radius = torch.full((6,), 2.0, dtype=torch.float64)
    _, gain = subproblem_dense(g, H, radius)
    x = torch.randn(20000, 1, 10, generator=generator, dtype=torch.float64)
    x = 2 * x / x.norm(dim=-1, keepdim=True)
    assert (gain >= _model(g, H, x).amax(0)).all()


@pytest.mark.parametrize("leak", [0.0, 1e-200, 1e-14, 1e-6])
def test_dense_hard_case(leak):
    """No (or hardly any) gradient along the direction of greatest curvature."""
    H = torch.diag_embed(torch.tensor([[2.0, 0.5, -1.0]], dtype=torch.float64))
    g = torch.tensor([[leak, 0.3, 0.2]], dtype=torch.float64)
    s, gain = subproblem_dense(g, H, torch.tensor([3.0], dtype=torch.float64))
    # Multiplier 2: s_2 = .3 / (2 - .5), s_3 = .2 / (2 + 1), the rest of the radius along the first axis.
    rest = torch.tensor([0.2, 0.2 / 3], dtype=torch.float64)
    torch.testing.assert_close(s[0, 1:], rest, rtol=1e-5, atol=1e-9)
    torch.testing.assert_close(s[0, 0].abs(), (9 - rest.square().sum()).sqrt(), rtol=1e-6, atol=0)
    torch.testing.assert_close(gain, _model(g, H, s))


def test_dense_saddle_with_no_gradient_and_flat_function():
    H = torch.diag_embed(torch.tensor([[1.0, -1.0], [-1.0, -2.0], [0.0, 0.0]], dtype=torch.float64))
    s, gain = subproblem_dense(torch.zeros(3, 2, dtype=H.dtype), H, torch.ones(3, dtype=H.dtype))
    torch.testing.assert_close(s.abs(), torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 0.0]], dtype=H.dtype))
    torch.testing.assert_close(gain, torch.tensor([0.5, 0.0, 0.0], dtype=H.dtype))


def test_krylov_is_newton_inside_and_feasible_with_most_of_the_gain_outside():
    g, H, _ = _random(3, 8, 30)
    H[:4] = -H[:4] @ H[:4].mT / 30 - torch.eye(30, dtype=H.dtype)
    radius = torch.tensor([1e3, 1e3, 0.5, 0.1, 1.0, 0.1, 3.0, 0.01], dtype=torch.float64)
    s, gain = subproblem_krylov(lambda v: (H @ v[..., None])[..., 0], g, radius)
    exact, best = subproblem_dense(g, H, radius)
    assert (s.norm(dim=1) <= radius * (1 + 1e-9)).all()
    torch.testing.assert_close(gain, _model(g, H, s))
    assert (gain[:4] > 0.95 * best[:4]).all()
    # Steihaug's step is at least as good as the Cauchy point.
    assert (gain[4:] > 0.1 * best[4:]).all()
    assert ((s[:2] - exact[:2]).norm(dim=1) < 0.1 * exact[:2].norm(dim=1)).all()
