"""The training loop: steps that depend on nothing but the state, a state file, a log of JSON lines."""

from __future__ import annotations

import json
import math
import os
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from measures import improvement
from mixing import MixingPlan, MixtureDataset
from network import configuration, new_model
from store import SAMPLE_RATE, SOURCES, Entry
from torch import Tensor
from torch.utils.data import DataLoader

from mrsep_deploy.export.families.demucs.model import SeparationModel
from mrsep_deploy.export.families.demucs.variants import build_model

_STATE_FORMAT = 1
_START_MIXTURES = 2
_LEAST_POWER = 1e-6  # -60 dB of the mixture: a root has no slope at zero


@dataclass(frozen=True)
class TrainingPlan:
    """How to train.

    Attributes:
        steps: where the learning rate has come down to ``last_rate``.
        batch: mixtures a step.
        segment: seconds of each.
        rate, last_rate: learning rate after ``warm_up`` steps, which then falls along half a cosine.
        ema: decay of the running average of the weights, a step.
        clip: largest norm of the gradient.
        network: changes of the model's constructor arguments.
    """

    steps: int = 2700
    batch: int = 2
    segment: float = 2.0
    rate: float = 1e-3
    last_rate: float = 5e-5
    warm_up: int = 50
    ema: float = 0.995
    clip: float = 1.0
    seed: int = 42
    network: tuple[tuple[str, Any], ...] = ()

    @property
    def samples(self) -> int:
        """Length of a segment."""
        return int(self.segment * SAMPLE_RATE)

    def rate_at(self, step: int) -> float:
        """The learning rate of a step, counted from zero."""
        if step < self.warm_up:
            return self.rate * (step + 1) / self.warm_up
        share = min((step - self.warm_up) / max(self.steps - self.warm_up, 1), 1.0)
        return self.last_rate + (self.rate - self.last_rate) * (1 + math.cos(math.pi * share)) / 2


def error_of(estimates: Tensor, stems: Tensor) -> Tensor:
    """Root mean square error of ``[B, sources, 2, samples]``, the mean over mixtures and sources.

    The paper's mean absolute error has its least where a sample is as likely too high as too low. Of a source
    that is heard now and then that is silence, and a short training does not come to know when that is. A square
    has its least at the mean. Its root keeps a loud mixture from counting for more than a soft one.
    """
    power = (estimates - stems).square().flatten(2).mean(dim=-1)
    return (power + _LEAST_POWER).sqrt().mean()


class Training:
    """A model in training with all of its state.

    Attributes:
        step: steps done.
        model: the weights that are trained.
        average: the running average of them, which is what is published.
    """

    def __init__(
        self,
        plan: TrainingPlan,
        mixing: MixingPlan,
        entries: Sequence[Entry],
        device: torch.device,
        autocast: torch.dtype | None = None,
    ) -> None:
        self.plan, self.mixing, self.entries = plan, mixing, entries
        self.device, self.autocast = device, autocast
        torch.manual_seed(plan.seed)
        config = configuration(plan.segment, **dict(plan.network))
        dataset = MixtureDataset(entries, plan.samples, 0, _START_MIXTURES, plan.seed, mixing)
        stems = torch.stack([dataset[index] for index in range(_START_MIXTURES)])
        self.model: SeparationModel = new_model(config, stems.sum(dim=1)).to(device)
        self.average = build_model(config).to(device)
        self.average.load_state_dict(self.model.state_dict())
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=plan.rate)
        self.step = 0
        self.seconds = 0.0

    def start_from(self, weights: dict[str, Tensor]) -> None:
        """Begin with the weights of a checkpoint instead of fresh ones."""
        self.model.load_state_dict(weights)
        self.average.load_state_dict(weights)

    # --- steps

    def batches(self, until: int, workers: int) -> Iterator[Tensor]:
        """The batches of the steps up to ``until``, ``[B, sources, 2, samples]``."""
        plan = self.plan
        first, count = self.step * plan.batch, (until - self.step) * plan.batch
        dataset = MixtureDataset(self.entries, plan.samples, first, count, plan.seed, self.mixing)
        loader: DataLoader[Tensor] = DataLoader(
            dataset,
            batch_size=plan.batch,
            num_workers=workers,
            pin_memory=self.device.type == "cuda",
            prefetch_factor=2 if workers else None,
            worker_init_fn=_leave_signals_to_the_trainer,
        )
        return iter(loader)

    def take_step(self, stems: Tensor) -> dict[str, float]:
        """One step of Adam on the error of all stems."""
        rate = self.plan.rate_at(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        stems = stems.to(self.device, non_blocking=True)
        with torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None):
            estimates = self.model(stems.sum(dim=1))
        loss = error_of(estimates.float(), stems)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.plan.clip)
        if not torch.isfinite(norm):
            raise FloatingPointError(
                f"the gradient of step {self.step} is not finite, expected numbers; lower the learning rate"
            )
        self.optimizer.step()
        self.step += 1
        self._follow()
        return {"loss": float(loss.detach()), "gradient": float(norm), "rate": rate}

    @torch.no_grad()
    def _follow(self) -> None:
        decay = min(self.plan.ema, (1 + self.step) / (10 + self.step))
        ours, theirs = list(self.average.parameters()), list(self.model.parameters())
        torch._foreach_lerp_(ours, theirs, 1 - decay)

    @torch.inference_mode()
    def validate(self, items: Sequence[Tensor]) -> dict[str, dict[str, float]]:
        """SDR and gain over the mixture of the averaged weights, in float32."""
        estimates = []
        for stems in items:
            mixture = stems.sum(dim=0, keepdim=True).to(self.device)
            estimates.append(self.average(mixture)[0].float().cpu())
        return improvement(estimates, items, SOURCES)

    # --- state

    def save(self, path: Path) -> None:
        """Write the state file, whole or not at all."""
        state = {
            "format": _STATE_FORMAT,
            "plan": asdict(self.plan),
            "step": self.step,
            "seconds": self.seconds,
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "random": torch.get_rng_state(),
        }
        work = path.with_name(f".{path.name}.{os.getpid()}")
        torch.save(state, work)
        os.replace(work, path)

    def load(self, path: Path) -> None:
        """Continue from a state file.

        Raises:
            ValueError: it was written with another network or another seed.
        """
        state = torch.load(path, map_location=self.device, weights_only=True)
        for name in ("network", "seed", "batch"):
            found, expected = state["plan"][name], getattr(self.plan, name)
            if _listed(found) != _listed(expected):
                raise ValueError(
                    f"{path} was trained with {name}={found}, this run has {expected}; "
                    "give the same values, or another folder"
                )
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["random"].cpu())
        self.step, self.seconds = state["step"], state["seconds"]


def _leave_signals_to_the_trainer(_worker: int) -> None:
    """A signal to the whole process group ends the step, not the process that the step waits for."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


class Interrupt:
    """Turns Ctrl-C and a termination signal into a flag, so that a step ends and the state is saved."""

    def __init__(self) -> None:
        self.raised = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._raise)

    def _raise(self, number: int, frame: FrameType | None) -> None:
        self.raised = True


class Log:
    """JSON lines, appended; also printed."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, **facts: object) -> None:
        """Add one line with the time."""
        line = json.dumps({"time": round(time.time(), 1), **facts})
        with open(self.path, "a") as file:
            file.write(line + "\n")
        print(line, flush=True)


def _listed(value: Any) -> Any:
    return [_listed(item) for item in value] if isinstance(value, (list, tuple)) else value
