"""The methods as functions of a problem (and a guide) with flat options, as users call them by name."""

from __future__ import annotations

import astrozoo.infer


def _guideless(method):
    return lambda problem, **options: astrozoo.infer.infer(problem, method, **options)


def _with_guide(method):
    return lambda problem, guide, **options: astrozoo.infer.infer(problem, method, guide, **options)


hmc, laplace, nuts, nutpie = map(_guideless, ("hmc", "laplace", "nuts", "nutpie"))
el2o, svi, trust_region = map(_with_guide, ("el2o", "svi", "trust_region"))
