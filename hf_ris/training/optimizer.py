"""Parameter groups by rules, learning-rate schedules as plain functions of the step, and averaged weights."""

import copy
import math
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from hf_ris.training.recipe import OptimizerRecipe, Rule, ScheduleRecipe


@dataclass(frozen=True)
class Settings:
    """Of one parameter, after all rules."""

    lr_scale: float = 1.0
    weight_decay: float = 0.0
    freeze: bool = False
    eval_mode: bool = False


def settings_of_parameters(names: Iterable[str], rules: list[Rule], weight_decay: float) -> dict[str, Settings]:
    """Settings by parameter name: every matching rule applies, later ones override.

    Raises:
        ValueError: a rule that matches no name, which would silently do nothing.
    """
    names = list(names)
    for rule in rules:
        if not any(re.search(rule.pattern, name) for name in names):
            raise ValueError(f"optimizer.rules: no parameter matches {rule.pattern!r}; names are like {names[0]!r}.")
    result = {}
    for name in names:
        values = {"weight_decay": weight_decay}
        for rule in rules:
            if re.search(rule.pattern, name):
                values |= {key: value for key, value in asdict(rule).items() if value is not None and key != "pattern"}
        result[name] = Settings(**values)
    return result


def freeze(model: nn.Module, recipe: OptimizerRecipe) -> list[nn.Module]:
    """Switch off the gradient of frozen parameters and of those that by construction get none (DDP would wait for it).

    Returns the modules that stay in eval mode: those with parameters, all of them frozen with `eval_mode`.
    """
    settings = settings_of_parameters(dict(model.named_parameters()), recipe.rules, recipe.weight_decay)
    for name, parameter in model.named_parameters():
        unused = any(re.search(pattern, name) for pattern in model._keys_without_gradient)
        parameter.requires_grad_(not settings[name].freeze and not unused)
    still = []
    for prefix, module in model.named_modules():
        inside = [settings[f"{prefix}.{name}" if prefix else name] for name, _ in module.named_parameters()]
        if inside and all(of_one.freeze and of_one.eval_mode for of_one in inside):
            still.append(module)
    return still


def parameter_groups(model: nn.Module, recipe: OptimizerRecipe) -> list[dict[str, Any]]:
    """One group per learning rate and weight decay, of the parameters that `freeze` left trainable."""
    settings = settings_of_parameters(dict(model.named_parameters()), recipe.rules, recipe.weight_decay)
    groups: dict[tuple[float, float], dict[str, nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((settings[name].lr_scale, settings[name].weight_decay), {})[name] = parameter
    return [
        {
            "params": list(parameters.values()),
            "names": list(parameters),
            "lr": recipe.learning_rate * lr_scale,
            "initial_lr": recipe.learning_rate * lr_scale,
            "weight_decay": weight_decay,
        }
        for (lr_scale, weight_decay), parameters in groups.items()
    ]


def build_optimizer(model: nn.Module, recipe: OptimizerRecipe) -> torch.optim.Optimizer:
    """The recipe's optimizer. A state loaded into it brings the moments, never the settings: these are the recipe's."""
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[recipe.name]
    # fused: one pass over memory on CPUs too, where torch would otherwise run a dozen small operations per tensor
    optimizer = kind(parameter_groups(model, recipe), betas=tuple(recipe.betas), fused=True)
    optimizer.register_load_state_dict_pre_hook(_moments_only)
    return optimizer


def _moments_only(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """A saved state with the groups and settings of `optimizer`, and each parameter's moments found by its name.

    A parameter that was not trained before starts without any.
    """
    saved = {name: number for group in state["param_groups"] for name, number in zip(_names(group), group["params"])}
    groups, moments, number = [], {}, 0
    for group in optimizer.param_groups:
        ids = range(number, number + len(group["names"]))
        groups.append({**group, "params": list(ids)})
        for number_of, name in zip(ids, group["names"]):
            if saved.get(name) in state["state"]:
                moments[number_of] = state["state"][saved[name]]
        number += len(ids)
    return {**state, "state": moments, "param_groups": groups}


def _names(group: dict[str, Any]) -> list[str]:
    """Of a saved group's parameters: sharded training saves them by name instead of by number."""
    return group["params"] if group["params"] and isinstance(group["params"][0], str) else group["names"]


def learning_rate_factor(schedule: ScheduleRecipe, step: int, total_steps: int, steps_per_epoch: int) -> float:
    """Factor of the learning rate for optimizer step `step` in [0, total_steps)."""
    if step < schedule.warmup_steps:
        return (step + 1) / (schedule.warmup_steps + 1)
    progress = (step - schedule.warmup_steps) / max(1, total_steps - schedule.warmup_steps)
    if schedule.name == "poly":
        return (1 - progress) ** schedule.power
    if schedule.name == "cosine":
        return schedule.floor + (1 - schedule.floor) * (1 + math.cos(math.pi * progress)) / 2
    if schedule.name == "step":
        passed = [milestone * steps_per_epoch for milestone in schedule.milestones]
        passed += [fraction * total_steps for fraction in schedule.fractions]
        return schedule.gamma ** sum(step >= milestone for milestone in passed)
    return 1.0


class AveragedWeights:
    """Exponential moving average of a model's parameters; buffers (batch statistics) are copied.

    The decay rises as (1 + step) / (10 + step) up to `decay`, so that the random start is forgotten soon.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.model.parameters()), list(model.parameters()), weight)
        for own, other in zip(self.model.buffers(), model.buffers()):
            own.copy_(other)

    def state_dict(self) -> dict[str, torch.Tensor]:
        return self.model.state_dict()

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        self.model.load_state_dict(state)
