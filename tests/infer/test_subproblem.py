from __future__ import annotations

import pytest
import torch

from astrozoo.infer.subproblem import subproblem_dense, subproblem_krylov


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


def _product(H):
    return lambda v, rows: (H[rows] @ v[..., None])[..., 0]


def test_krylov_is_newton_inside_and_the_global_maximum_on_the_boundary():
    g, H, _ = _random(3, 8, 30)
    H[:4] = -H[:4] @ H[:4].mT / 30 - torch.eye(30, dtype=H.dtype)
    radius = torch.tensor([1e3, 1e3, 0.5, 0.1, 1.0, 0.1, 3.0, 0.01], dtype=torch.float64)
    s, gain = subproblem_krylov(_product(H), g, radius)
    exact, best = subproblem_dense(g, H, radius)
    assert (s.norm(dim=1) <= radius * (1 + 1e-9)).all()
    torch.testing.assert_close(gain, _model(g, H, s))
    # Inside, a residual of a tenth; on the boundary, where a product more adds less than a twentieth.
    assert (gain > 0.9 * best).all()
    assert (gain <= best * (1 + 1e-9)).all()
    assert ((s[:2] - exact[:2]).norm(dim=1) < 0.1 * exact[:2].norm(dim=1)).all()


@pytest.mark.parametrize("leak", [0.0, 1e-12, 0.3])
def test_krylov_hard_case(leak):
    """Without a gradient along the greatest curvature that direction stays unseen; with some it is found."""
    H = torch.diag_embed(torch.tensor([[2.0, 0.5, -1.0]], dtype=torch.float64))
    g = torch.tensor([[leak, 0.3, 0.2]], dtype=torch.float64)
    radius = torch.tensor([3.0], dtype=torch.float64)
    s, gain = subproblem_krylov(_product(H), g, radius)
    _, best = subproblem_dense(g, H, radius)
    _, seen = subproblem_dense(g[:, 1:], H[:, 1:, 1:], radius)
    torch.testing.assert_close(gain, _model(g, H, s))
    if leak == 0.3:
        assert gain > 0.9 * best
    else:
        assert (gain >= 0.9 * seen).all()


def test_krylov_works_only_on_the_rows_that_still_run():
    """One eigenvalue: one product; the other row takes as many as it has eigenvalues."""
    H = torch.diag_embed(-torch.tensor([[2.0] * 5, [1.0, 10, 100, 1e3, 1e4]], dtype=torch.float64))
    asked = []

    def product(v, rows):
        asked.append(rows.tolist())
        return (H[rows] @ v[..., None])[..., 0]

    g = torch.ones(2, 5, dtype=torch.float64)
    s, _ = subproblem_krylov(product, g, torch.full((2,), 1e3, dtype=torch.float64))
    assert asked[0] == [0, 1]
    assert asked[1:] == [[1]] * (len(asked) - 1)
    torch.testing.assert_close(s[0], torch.full((5,), 0.5, dtype=torch.float64))
