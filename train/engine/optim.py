"""Parameter groups, optimizers, and what the schedules set before every step."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Sequence

import torch
from torch import nn

from ...errors import UserError
from ...lengths import length_in_steps
from ...outside import imported
from ...schema.bounds import require
from ..recipe.schedules import half_cosine, learning_rates
from ..recipe.settings import (
    AdamWSettings,
    GroupRule,
    LAMBSettings,
    LARSSettings,
    OptimSettings,
    OwnOptimSettings,
    SGDSettings,
)
from .lars import LAMB, LARS


def layer_scales(model: nn.Module, decay: float, merge_layer: str = "before") -> dict[str, float]:
    """Parameter name -> factor on the rate, for the parameters of every module that knows its layers; 1 for the rest.

    Such a module has ``num_layers`` and ``layer_of(name) -> int`` for the names of its own parameters: 0 for the
    embedding, then one number a block, ``num_layers - 1`` for what comes after the last block. The factor is
    ``decay ** (num_layers - 1 - layer)`` (BEiT, arXiv 2106.08254; ELECTRA, arXiv 2003.10555). What ``merges(name)``
    calls a merging of tokens has the layer of the block before it, or with `merge_layer` "after" the next one.
    """
    scales, merged = {}, False
    for prefix, module in model.named_modules():
        if hasattr(module, "layer_of") and hasattr(module, "num_layers"):
            for name, _ in module.named_parameters():
                after = merge_layer == "after" and hasattr(module, "merges") and module.merges(name)
                layer, merged = module.layer_of(name) + after, merged or after
                scales[f"{prefix}.{name}" if prefix else name] = decay ** (module.num_layers - 1 - layer)
    if not scales:
        raise UserError("optim.layer_decay: the backbone does not say which layer a parameter belongs to (layer_of)")
    if merge_layer == "after" and not merged:
        raise UserError("optim.merge_layer: this encoder merges no tokens; leave the key out")
    return scales


def parameter_groups(model: nn.Module, settings: OptimSettings) -> list[dict]:
    """The trainable parameters in as few groups as `OptimSettings.exempt`, `groups` and `layer_decay` allow.

    Beside the optimizer's own keys a group has ``lr_scale``, ``fixed_lr``, ``scheduled_decay`` and perhaps
    ``frozen`` for `Schedules`.
    Raises `UserError` for a rule or an exemption that no parameter matches.
    """
    decay = settings.layer_decay
    scales = {} if decay is None else layer_scales(model, decay, settings.merge_layer)
    used, groups = set(), {}
    for name, parameter in model.named_parameters():
        rule = next((rule for rule in settings.groups if re.search(rule.match, name)), GroupRule(match=""))
        patterns = settings.exempt if isinstance(settings.exempt, tuple) else ()
        found = [pattern for pattern in patterns if re.search(pattern, name)]
        still = [frozen for frozen in settings.frozen if re.search(frozen.match, name)]
        used.update([rule.match, *found, *(frozen.match for frozen in still)])
        if not parameter.requires_grad:
            continue
        exempt = bool(found) or settings.exempt == "vectors" and sum(side > 1 for side in parameter.shape) <= 1
        own = rule.weight_decay is not None
        group = {
            "lr_scale": rule.lr * scales.get(name, 1.0),
            "fixed_lr": rule.fixed_lr,
            "weight_decay": rule.weight_decay if own else 0.0 if exempt else settings.weight_decay,
            "scheduled_decay": not own and not exempt,
        }
        if still:
            group["frozen"] = tuple(frozen.until for frozen in still)
        if rule.momentum is not None:
            group["momentum"] = rule.momentum
        if isinstance(settings, (LARSSettings, LAMBSettings)):
            group["adapt"] = not exempt if rule.adapt is None else rule.adapt
        groups.setdefault(tuple(group.items()), []).append(parameter)
    rules = [(f"groups[{i}].match", rule.match) for i, rule in enumerate(settings.groups)]
    rules += [("exempt", pattern) for pattern in (settings.exempt if isinstance(settings.exempt, tuple) else ())]
    rules += [(f"frozen[{i}].match", frozen.match) for i, frozen in enumerate(settings.frozen)]
    idle = [f"optim.{key}: {pattern!r} matches no parameter" for key, pattern in rules if pattern not in used]
    if idle:
        some = ", ".join(name for name, _ in list(model.named_parameters())[:: max(1, len(used) * 5)][:5])
        raise UserError("\n".join(f"{line} (names are like {some})" for line in idle))
    return [{"params": parameters, **dict(key)} for key, parameters in groups.items()]


# What torch wraps in notes to its compiler, and imports that for when they are first called
_NOTED = ("add_param_group", "zero_grad", "state_dict", "load_state_dict")


@functools.cache
def eager(kind: type[torch.optim.Optimizer]) -> type[torch.optim.Optimizer]:
    """A subclass with the functions inside those wrappers: bit for bit the same steps.

    The wrappers keep torch.compile out of these methods. Here only models are compiled, never an optimizer, and the
    import takes 1.3 s of a core: 30 % of all that a small run does until its first step.
    """
    own = {name: inspect.unwrap(getattr(kind, name)) for name in _NOTED}
    own["step"] = torch.no_grad()(inspect.unwrap(kind.step))
    return type(kind.__name__, (kind,), own)


def build_optimizer(model: nn.Module, settings: OptimSettings) -> torch.optim.Optimizer:
    """The optimizer of a recipe's `optim` section; `Schedules` sets its rates and decays before every step.

    Every one of ours leaves out a step whose `found_inf` is set, without asking the device for its value. Raises
    `UserError` for an optimizer of one's own that does not take the options, and for numbers that a recipe could not
    hold.
    """
    require(settings)
    groups = parameter_groups(model, settings)
    try:
        return _optimizer(groups, settings)
    except (ValueError, TypeError) as fault:
        raise UserError(f"optim: {fault}") from fault


def _optimizer(groups: list[dict], settings: OptimSettings) -> torch.optim.Optimizer:
    match settings:
        case AdamWSettings():
            options = {"betas": settings.betas, "eps": settings.eps, "fused": True}
            return eager(torch.optim.AdamW)(groups, lr=settings.lr, **options)
        case LARSSettings():
            options = {"trust": settings.trust, "eps": settings.eps, "form": settings.form}
            return eager(LARS)(groups, lr=settings.lr, momentum=settings.momentum, **options)
        case LAMBSettings():
            return eager(LAMB)(groups, lr=settings.lr, betas=settings.betas, eps=settings.eps)
        case SGDSettings():
            options = {"momentum": settings.momentum, "nesterov": settings.nesterov, "fused": True}
            optimizer = eager(torch.optim.SGD)(groups, lr=settings.lr, **options)
            for group in optimizer.param_groups:  # otherwise a skipped first step leaves them uninitialised
                for parameter in group["params"] if group["momentum"] else ():
                    optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
            return optimizer
        case OwnOptimSettings():
            return imported(settings.name, "optim.name")(groups, lr=settings.lr, **settings.options)
    raise TypeError(f"not an optimizer's settings: {settings}")


def peak_lr(settings: OptimSettings, batch_size: int) -> float:
    """The linear scaling rule (arXiv 1706.02677), lr x batch / lr_batch, or the root of that factor."""
    factor = batch_size / settings.lr_batch if settings.lr_batch else 1.0
    return settings.lr * (factor if settings.lr_scaling == "linear" else factor**0.5)


def clip_groups(model: nn.Module, patterns: Sequence[str]) -> list[list[nn.Parameter]]:
    """The trainable parameters whose gradients are clipped together: one list for each of `patterns`, and the rest.

    Raises `UserError` for a pattern that no parameter matches first.
    """
    groups = [[] for _ in range(len(patterns) + 1)]
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[next((i for i, p in enumerate(patterns) if re.search(p, name)), -1)].append(parameter)
    for pattern, group in zip(patterns, groups):
        if not group:
            raise UserError(f"optim.clip_apart: {pattern!r} matches no parameter, or none that is left")
    return [group for group in groups if group]


class Schedules:
    """The rate and the weight decay of every step of a run, as arrays."""

    def __init__(self, settings: OptimSettings, batch_size: int, total_steps: int, steps_per_epoch: int) -> None:
        self.peak = peak_lr(settings, batch_size)
        self.lrs = learning_rates(
            self.peak,
            total_steps,
            steps_per_epoch,
            schedule=settings.schedule,
            warmup=length_in_steps(settings.warmup, total_steps, steps_per_epoch),
            warmup_from=settings.warmup_from,
            warmup_curve=settings.warmup_curve,
            per_epoch=settings.per_epoch,
            final=settings.final_lr,
            power=settings.power,
            milestones=settings.milestones,
            gamma=settings.gamma,
        )
        end = settings.weight_decay if settings.weight_decay_end is None else settings.weight_decay_end
        self.decays = half_cosine(settings.weight_decay, end, total_steps)
        self._frozen = {
            each.until: length_in_steps(each.until, total_steps, steps_per_epoch) for each in settings.frozen
        }

    def apply(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Sets what `step` (from 0) is taken with."""
        for group in optimizer.param_groups:
            still = any(step < self._frozen[until] for until in group.get("frozen", ()))
            lr = 0.0 if still else self.peak if group["fixed_lr"] else self.lrs[step]
            group["lr"] = float(lr) * group["lr_scale"]
            if group["scheduled_decay"]:
                group["weight_decay"] = float(self.decays[step])
