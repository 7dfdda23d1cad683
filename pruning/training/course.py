"""Where a training stands, saved as safetensors: weights, the optimizer's moments, the best yet."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.optim import AdamW

Parameters = Mapping[str, torch.nn.Parameter]

_FILE = "course.safetensors"
_MOMENTS = ("exp_avg", "exp_avg_sq")  # as AdamW calls them


class Course:
    """Counts the steps of a training, and keeps the weights that the held-out loss liked best.

    `extras` are tensors that steps change in place and that go with the weights; `notes` are
    whatever JSON can tell.
    """

    def __init__(
        self,
        parameters: Parameters,
        weight_decay: float,
        first_loss: float,
        extras: Mapping[str, Tensor] | None = None,
    ):
        self.parameters, self.extras = parameters, extras or {}
        self.optimizer = AdamW(parameters.values(), weight_decay=weight_decay)
        self.step = self.checks_in_vain = 0
        self.first_loss = self.best_loss = self.last_loss = first_loss
        self.notes: list[Any] = []
        self._best: dict[str, Tensor] = {}

    @classmethod
    def begin(
        cls,
        parameters: Parameters,
        weight_decay: float,
        loss: float,
        extras: Mapping[str, Tensor] | None = None,
    ) -> "Course":
        """A course at its first step; `loss` is the held-out loss of the untrained weights."""
        course = cls(parameters, weight_decay, loss, extras)
        course._keep()
        return course

    @classmethod
    def resume(
        cls,
        state: Path,
        parameters: Parameters,
        weight_decay: float,
        extras: Mapping[str, Tensor] | None = None,
    ) -> "Course | None":
        """The course saved in `state`, its weights put into `parameters`; None if there is none."""
        path = state / _FILE
        if not path.exists():
            return None
        with safe_open(path, framework="pt") as file:
            told = json.loads(file.metadata()["course"])
            course = cls(parameters, weight_decay, told["first_loss"], extras)
            course.step, course.checks_in_vain = told["step"], told["checks_in_vain"]
            course.best_loss, course.last_loss = told["best_loss"], told["last_loss"]
            course.notes = told["notes"]
            for name, extra in course.extras.items():
                extra.copy_(file.get_tensor(f"extra.{name}"))
            for name, parameter in parameters.items():
                parameter.data.copy_(file.get_tensor(f"weight.{name}"))
                course._best[name] = file.get_tensor(f"best.{name}").to(parameter.device)
                if f"step.{name}" not in file.keys():  # frozen
                    continue
                course.optimizer.state[parameter] = {
                    moment: torch.empty_like(parameter).copy_(file.get_tensor(f"{moment}.{name}"))
                    for moment in _MOMENTS
                } | {"step": file.get_tensor(f"step.{name}")}
        return course

    def judge(self, loss: float) -> None:
        """Take note of the held-out loss of the weights as they are; NaN is never the best."""
        self.last_loss = loss
        if loss < self.best_loss:
            self.best_loss, self.checks_in_vain = loss, 0
            self._keep()
        else:
            self.checks_in_vain += 1

    def drop_frozen(self) -> None:
        """Forget the moments of what is not trained now: this is what freezing saves."""
        for parameter in self.parameters.values():
            if not parameter.requires_grad:
                parameter.grad = None
                self.optimizer.state.pop(parameter, None)

    def return_to_best(self) -> None:
        """Put the best weights back."""
        for name, parameter in self.parameters.items():
            parameter.data.copy_(self._best[name])

    def save(self, state: Path) -> None:
        """Save all of it, whole or not at all."""
        tensors = {f"extra.{name}": extra for name, extra in self.extras.items()}
        for name, parameter in self.parameters.items():
            tensors[f"weight.{name}"] = parameter.detach()
            tensors[f"best.{name}"] = self._best[name]
            if moments := self.optimizer.state.get(parameter):
                tensors |= {f"{kind}.{name}": moments[kind] for kind in (*_MOMENTS, "step")}
        told = {
            "step": self.step,
            "checks_in_vain": self.checks_in_vain,
            "first_loss": self.first_loss,
            "best_loss": self.best_loss,
            "last_loss": self.last_loss,
            "notes": self.notes,
        }
        draft = state / f"{_FILE}.draft"
        save_file(
            {n: t.contiguous() for n, t in tensors.items()}, draft, {"course": json.dumps(told)}
        )
        os.replace(draft, state / _FILE)

    def _keep(self) -> None:
        self._best = {name: p.detach().clone() for name, p in self.parameters.items()}
