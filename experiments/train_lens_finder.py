"""Train the weights that `lens_finder` ships, as ``astrozoo train lens_finder`` does, and store them in
float16.

    python -m experiments.train_lens_finder --out runs/lens_finder [--survey ground] [--stamps 24000]
    [--passes 20]

The same command continues a run that was stopped. Files in ``--out``:

- ``weights.safetensors``: ``models/lens_finder.safetensors`` is a copy;
- ``scores.json``: the settings and the CPU seconds of simulation and training.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path

from astrozoo._files import write_json
from astrozoo._train_command import train_stages
from astrozoo._trained import Trained
from astrozoo.data.lens_survey import SURVEYS
from astrozoo.models import lens_finder_training


def halved(trained: Trained) -> Trained:
    """The same weights in float16, which the whitening of the statistics would not survive."""
    exact = ("reference.root", "reference.centre")
    weights = {n: w if n.endswith(exact) else w.half() for n, w in trained.weights.items()}
    return replace(trained, weights=weights)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--survey", default="ground", choices=tuple(SURVEYS))
    parser.add_argument("--stamps", type=int, default=24_000)
    parser.add_argument("--passes", type=float, default=20.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    began = time.process_time()
    stages = lens_finder_training.training(
        out=options.out, path=None, seed=options.seed,
        survey=options.survey, stamps=options.stamps, passes=options.passes,
    )  # fmt: skip
    simulated = time.process_time()
    trained = train_stages(stages, options.out, seed=options.seed)
    ended = time.process_time()
    halved(trained).save(options.out / "weights.safetensors")
    scores = {
        **{name: getattr(options, name) for name in ("survey", "stamps", "passes", "seed")},
        "CPU seconds of this run's simulation": round(simulated - began),
        "CPU seconds of this run's training": round(ended - simulated),
    }
    write_json(scores, options.out / "scores.json")
    for name, value in scores.items():
        print(f"{name}: {value}")


if __name__ == "__main__":
    main()
