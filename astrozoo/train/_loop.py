"""The loop over steps, by Lightning."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from astrozoo._trainable import Trainable
from astrozoo.infer.randomness import generator_for
from astrozoo.train._batches import Parts, loader

__all__ = ["Loop"]

SAVE_EVERY = 60.0
"""[s] between two checkpoints: the most work that is lost."""
LOOKS = 200
"""Points of the curve: the loss is averaged between two looks, and read from the device at each."""
KEEP_EVERY = 20
"""[steps] Fewest between two copies of the weights, which are kept in case that the loss diverges later."""
HELD_OUT_LOOKS = 10
"""How often the ELBO of held-out data is computed: it costs a pass over them."""
WARM_UP = 0.02
"""Fraction of the steps in which the learning rate rises from 0; afterwards it falls to 0 as a cosine."""
_NOISE = 2
"""Stream of the random numbers of steps."""
_HELD_OUT = 3
"""Stream of the random numbers of the held-out ELBO."""


@contextmanager
def randomness(seed: int, *stream: int, device: torch.device) -> Iterator[None]:
    """All random draws inside come from this stream; the global generators are put back afterwards."""
    number = int(torch.randint(2**62, (1,), generator=generator_for(seed, *stream)))
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        # torch.manual_seed would also note the stack for each kind of device that is absent, for 1 ms a step
        torch.default_generator.manual_seed(number)
        if devices:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(number)
        yield


class Loop(pl.LightningModule):
    """What Lightning asks for at each step.

    Args:
        trainable: the loss.
        parts: makes the minibatches of a rank: ``parts(rank, devices)``.
        held_out: arguments of the model and their number of elements, of minibatches of held-out data.
        header: what a checkpoint must agree with to be continued.
        path: of the checkpoint, written every ``SAVE_EVERY`` seconds.
    """

    def __init__(
        self,
        trainable: Trainable,
        parts: Callable[[int, int], Parts],
        *,
        steps: int,
        seed: int,
        rate: float,
        workers: int,
        held_out: list[tuple[Any, Mapping[str, int]]],
        header: Mapping[str, str],
        path: Path | None,
    ) -> None:
        super().__init__()
        self.trainable, self.parts, self.steps, self.seed = trainable, parts, steps, seed
        self.rate, self.workers, self.held_out, self.header = rate, workers, held_out, dict(header)
        self.look_every = max(1, steps // LOOKS)
        self.curve: dict[str, list[float]] = {"step": [], "elbo": [], "rate": [], "seconds": []}
        self.curve |= {"held_out_step": [], "held_out_elbo": []}
        self.sum, self.seconds_before, self.began = torch.zeros(()), 0.0, time.monotonic()
        self.diverged, self.path, self.saved = False, path, time.monotonic()
        self.finite: dict[str, Tensor] = {}
        self.kept = 0

    def on_train_start(self) -> None:
        """Keep the first weights, or those of the checkpoint."""
        self._keep(self.global_step)

    def train_dataloader(self) -> Any:
        """Minibatches from the step on that comes next."""
        parts = self.parts(self.trainer.global_rank, self.trainer.world_size)
        return loader(parts, self.trainer.global_step, self.steps, self.workers)

    def configure_optimizers(self) -> Any:
        """Adam, with a warm-up and a cosine of the learning rate."""
        warm = max(1, round(WARM_UP * self.steps))

        def factor(step: int) -> float:
            return min(1.0, (step + 1) / warm) * 0.5 * (1 + math.cos(math.pi * step / self.steps))

        optimiser = torch.optim.Adam(self.trainable.parameters(), self.rate)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, factor)
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def training_step(self, batch: Any, number: int) -> Tensor:
        """The loss; its random draws are those of the seed, the step and the rank."""
        stream = (_NOISE, self.global_step, self.global_rank)
        share = None
        if self.trainer.world_size > 1:
            first = next(iter(self.trainable.sizes))
            share = self.trainable.sizes | {first: self.trainable.sizes[first] // self.trainer.world_size}
        with randomness(self.seed, *stream, device=self.device):
            loss = self.trainable(*batch, sizes=share)
        self.sum = self.sum.to(loss.device) + loss.detach().double()
        return loss

    def on_train_batch_end(self, *unused: Any) -> None:
        """Look and save, if it is time to."""
        step = self.global_step
        if step % self.look_every == 0 or step == self.steps:
            self._look(step)
        if self.path is not None:
            self._save(self.path)

    def _look(self, step: int) -> None:
        since = step - (self.curve["step"][-1] if self.curve["step"] else 0)
        mean = -float(self.sum) / since
        self.sum = torch.zeros(())
        point = {"step": step, "elbo": mean, "rate": self.trainer.optimizers[0].param_groups[0]["lr"]}
        point["seconds"] = self.seconds_before + time.monotonic() - self.began
        for name, value in point.items():
            self.curve[name].append(value)
        if self.trainer.progress_bar_callback is not None:
            self.log("elbo", mean, prog_bar=True, logger=False)
        if not math.isfinite(mean):
            self.diverged = self.trainer.should_stop = True
            return
        if step - self.kept >= KEEP_EVERY:
            self._keep(step)
        every = max(1, self.steps // HELD_OUT_LOOKS)
        last = self.curve["held_out_step"][-1] if self.curve["held_out_step"] else 0
        if self.held_out and (step - last >= every or step == self.steps):
            self.curve["held_out_step"].append(step)
            self.curve["held_out_elbo"].append(self.held_out_elbo())

    def _keep(self, step: int) -> None:
        """Copy the weights, if they are finite."""
        weights = self.trainable.weights()
        if _are_finite(weights):
            self.finite, self.kept = weights, step

    def last_weights(self) -> dict[str, Tensor]:
        """The weights as they are; of a run that diverged, the last finite ones that were kept."""
        weights = self.trainable.weights()
        self.diverged = self.diverged or not _are_finite(weights)
        return self.finite if self.diverged else weights

    def _save(self, path: Path) -> None:
        """Write a checkpoint, if it is time to by the clock of the first device."""
        due = time.monotonic() - self.saved >= SAVE_EVERY
        if self.trainer.world_size > 1:
            due = self.trainer.strategy.broadcast(due)
        if due:
            self.trainer.save_checkpoint(path)
            self.saved = time.monotonic()

    @torch.no_grad()
    def held_out_elbo(self) -> float:
        """[nat per element], with the same noise at each look."""
        total, elements = 0.0, 0
        for i, (args, sizes) in enumerate(self.held_out):
            batch = self.transfer_batch_to_device(args, self.device, 0)
            with randomness(self.seed, _HELD_OUT, i, device=self.device):
                n = next(iter(sizes.values()))
                total -= n * float(self.trainable(*batch, sizes=sizes))
                elements += n
        return total / elements

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the curve and the header."""
        seconds = self.seconds_before + time.monotonic() - self.began
        checkpoint["astrozoo"] = {
            "header": self.header, "curve": self.curve, "sum": self.sum, "seconds": seconds,
        }  # fmt: skip

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the curve back."""
        saved = checkpoint["astrozoo"]
        self.curve, self.sum = saved["curve"], saved["sum"]
        self.seconds_before, self.began = saved["seconds"], time.monotonic()


def _are_finite(weights: Mapping[str, Tensor]) -> bool:
    return all(bool(w.isfinite().all()) for w in weights.values())
