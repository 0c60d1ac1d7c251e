"""Optimizers with a step per layer, in proportion to the norm of its weights: LARS and LAMB.

Norms, ratios and skipped steps stay on the device. Like torch's fused optimizers, both take a step only if the tensor
`found_inf`, where the loop has set one, is 0; otherwise weights and state keep their bits.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor


def _ratios(numerators: list[Tensor], denominators: Tensor, factor: float, eps: float) -> list[Tensor]:
    """``factor * |w| / (denominator + eps)`` for each tensor; 1 where a norm is zero."""
    weights = torch.stack(numerators)
    usable = (weights > 0) & (denominators > 0)
    return list(torch.where(usable, factor * weights / (denominators + eps), 1.0).unbind())


class _LayerWise(torch.optim.Optimizer):
    _step_supports_amp_scaling = True  # GradScaler then leaves `found_inf` to `step` instead of waiting for its value
    found_inf: Tensor | None = None  # scalar, 1 where the step must not be taken

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                bad = self.found_inf if self.found_inf is not None else torch.zeros((), device=params[0].device)
                self._step(group, params, [p.grad for p in params], bad)

    def _step(self, group: dict, params: list[Tensor], grads: list[Tensor], bad: Tensor) -> None:
        raise NotImplementedError

    def _state(self, params: list[Tensor], name: str) -> list[Tensor]:
        for p in params:
            if name not in self.state[p]:
                self.state[p][name] = torch.zeros_like(p)
        return [self.state[p][name] for p in params]


class LARS(_LayerWise):
    """Layer-wise adaptive rate scaling. With gradient g, weights w, decay b, trust coefficient c, rate a, momentum m:

    form "paper" (arXiv 1708.03888):                r = c |w| / (|g| + b |w| + eps);  v = m v + a r (g + b w);  w -= v
    form "update" (code of MoCo v3, Barlow Twins):  r = c |w| / (|g + b w| + eps);    v = m v + r (g + b w);    w -= a v

    r is 1 where a norm is zero and in groups with ``adapt`` False, which makes them plain SGD with momentum.
    """

    def __init__(
        self,
        params,
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust: float = 1e-3,
        eps: float = 1e-8,
        form: Literal["paper", "update"] = "paper",
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "adapt": True}
        super().__init__(params, defaults)
        self._trust, self._eps, self._form = trust, eps, form

    def _step(self, group: dict, params: list[Tensor], grads: list[Tensor], bad: Tensor) -> None:
        decay, outer = group["weight_decay"], self._form == "update"
        updates = torch._foreach_add(grads, params, alpha=decay)
        if group["adapt"]:
            weights = torch._foreach_norm(params)
            if outer:
                below = torch.stack(torch._foreach_norm(updates))
            else:
                gradients = torch.stack(torch._foreach_norm(grads))
                below = torch.where(gradients > 0, gradients + decay * torch.stack(weights), 0.0)
            torch._foreach_mul_(updates, _ratios(weights, below, self._trust, self._eps))
        for update in updates:
            update.masked_fill_(bad > 0, 0.0)
        velocities = self._state(params, "momentum_buffer")
        torch._foreach_mul_(velocities, torch.where(bad > 0, 1.0, group["momentum"]))
        torch._foreach_add_(velocities, updates, alpha=1.0 if outer else group["lr"])
        rate = (group["lr"] if outer else 1.0) * (1 - bad)
        torch._foreach_sub_(params, torch._foreach_mul(velocities, rate))


class LAMB(_LayerWise):
    """Adam with a step per layer (You et al., arXiv 1904.00962, algorithm 2, phi the identity), decay b, rate a:

    u = m^ / (sqrt(v^) + eps) + b w, with the bias-corrected moments m^, v^;  w -= a (|w| / |u|) u

    The ratio is 1 where a norm is zero and in groups with ``adapt`` False, which makes them AdamW.
    """

    def __init__(
        self, params, lr: float, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-6, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "adapt": True})

    def _step(self, group: dict, params: list[Tensor], grads: list[Tensor], bad: Tensor) -> None:
        (beta1, beta2), good = group["betas"], 1 - bad
        first, second = self._state(params, "exp_avg"), self._state(params, "exp_avg_sq")
        count = self.state[params[0]].setdefault("count", torch.zeros((), device=params[0].device))
        count += good
        steps = count.clamp(min=1)  # of a run whose first step is skipped
        safe = [torch.where(bad > 0, 0.0, grad) for grad in grads]
        torch._foreach_mul_(first, torch.where(bad > 0, 1.0, beta1))
        torch._foreach_add_(first, safe, alpha=1 - beta1)
        torch._foreach_mul_(second, torch.where(bad > 0, 1.0, beta2))
        torch._foreach_addcmul_(second, safe, safe, value=1 - beta2)
        below = torch._foreach_mul(second, 1 / (1 - beta2 ** steps.clamp(min=1)))
        torch._foreach_sqrt_(below)
        torch._foreach_add_(below, group["eps"])
        updates = torch._foreach_mul(first, 1 / (1 - beta1**steps))
        torch._foreach_div_(updates, below)
        torch._foreach_add_(updates, params, alpha=group["weight_decay"])
        if group["adapt"]:
            norms = torch.stack(torch._foreach_norm(updates))
            torch._foreach_mul_(updates, _ratios(torch._foreach_norm(params), norms, 1.0, 0.0))
        torch._foreach_sub_(params, torch._foreach_mul(updates, group["lr"] * good))
