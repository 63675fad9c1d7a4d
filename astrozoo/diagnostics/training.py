"""The report of a training run: the curve of the ELBO, the settings and the weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from astrozoo._trained import Trained
from astrozoo.diagnostics.report import render
from astrozoo.types import Page, Status

__all__ = ["training_report", "training_summary"]

_MEANING = {
    Status.BUDGET_SPENT: (
        "good",
        "Finished.",
        "All steps were made. The curve should be level at its end.",
    ),
    Status.CONVERGED: ("good", "Finished.", "All steps were made."),
    Status.DIVERGED: ("bad", "Diverged.", "The loss was not finite. The weights are the last finite ones."),
    Status.INTERRUPTED: (
        "bad",
        "Interrupted.",
        "The run was stopped by the user, before training was finished.",
    ),
}


def training_summary(trained: Trained) -> dict[str, Any]:
    """The contents of a training run's ``summary.json``."""
    names = ("model", "guide", "seed", "digest", "data", "settings", "stats", "environment")
    ends = {
        name: float(trained.curve[name][-1])
        for name in ("elbo", "held_out_elbo")
        if len(trained.curve.get(name, ()))
    }
    return {"status": trained.status.value} | {name: getattr(trained, name) for name in names} | ends


def training_report(
    trained: Trained, path: str | Path, *, pages: Sequence[Page] = (), title: str | None = None
) -> Path:
    """Write a self-contained HTML report; see :func:`astrozoo.diagnostics.report.report`.

    Raises:
        OutputError: the file cannot be written.
    """
    kind, head, text = _MEANING[trained.status]
    shapes = [
        {"weights": name, "shape": "x".join(map(str, w.shape)) or "scalar", "numbers": w.numel()}
        for name, w in trained.weights.items()
    ]
    facts = {
        k: v for k, v in training_summary(trained).items() if k not in ("settings", "stats", "environment")
    }
    facts |= trained.settings | trained.stats | trained.environment
    total = sum(w.numel() for w in trained.weights.values())
    sections = [
        *pages,
        Page("Training", [(_curves(trained), "The ELBO per element of the data, and the learning rate.")]),
        Page("Cost and provenance", [[{"what": k, "value": str(v)} for k, v in facts.items()]]),
        Page("Weights", [f"{total:,} numbers.", shapes]),
    ]
    beta = trained.settings.get("model", {}).get("beta", 1.0)
    if beta != 1:
        kind, text = "bad", f"{text} The divergence from the prior was multiplied by {beta:g}: not an ELBO."
    banner = {"kind": kind, "head": head, "text": text}
    return render(path, title or f"{trained.model}: training", [banner], sections)


def _curves(trained: Trained) -> Figure:
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    objective, rate = figure.subplots(1, 2)
    curve = trained.curve
    if len(curve.get("step", ())):
        objective.plot(curve["step"], curve["elbo"], label="training")
        rate.plot(curve["step"], curve["rate"])
        late = curve["elbo"][len(curve["elbo"]) // 20 :]  # the first steps would dominate the scale
        late = late[np.isfinite(late)] if np.isfinite(late).any() else np.zeros(1)
        spread = max(float(late.max() - late.min()), 1e-6)
        objective.set_ylim(late.min() - 0.1 * spread, late.max() + 0.1 * spread)
    if len(curve.get("held_out_step", ())):
        objective.plot(curve["held_out_step"], curve["held_out_elbo"], "o-", label="held out")
        objective.legend()
    objective.set(xlabel="step", ylabel="ELBO per element [nat]")
    rate.set(xlabel="step", ylabel="learning rate")
    return figure
