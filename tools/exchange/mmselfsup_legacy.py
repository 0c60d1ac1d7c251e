"""Configurations of MMSelfSup 0.x in the words of 1.x."""

from __future__ import annotations

from typing import Any

_POLICIES = {
    "cosineannealing": "CosineAnnealingLR",
    "stepfixcosineannealing": "CosineAnnealingLR",
    "step": "MultiStepLR",
}


def modern(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration with 1.x's keys; one that has no keys of 0.x is returned as it is."""
    if "optimizer" not in config or "optim_wrapper" in config:
        return config
    found = {key: value for key, value in config.items() if key not in _OLD}
    if (batch := (config.get("data") or {}).get("samples_per_gpu")) is not None:
        found["train_dataloader"] = {"batch_size": batch}
    optimizer = dict(config["optimizer"])
    rules = dict((optimizer.pop("paramwise_cfg", None) or {}).get("custom_keys") or {})
    rules |= {key: _rule(options) for key, options in (optimizer.pop("paramwise_options", None) or {}).items()}
    more = config.get("optimizer_config") or {}
    found["optim_wrapper"] = {
        "type": "AmpOptimWrapper" if config.get("fp16") or "Fp16" in str(more.get("type")) else "OptimWrapper",
        "optimizer": optimizer,
        "clip_grad": more.get("grad_clip"),
        "accumulative_counts": more.get("update_interval"),
        "paramwise_cfg": {"custom_keys": rules},
    }
    epochs = (config.get("runner") or {}).get("max_epochs", config.get("total_epochs"))
    found["train_cfg"] = {"max_epochs": epochs}
    found["param_scheduler"] = _schedulers(dict(config.get("lr_config") or {}), epochs)
    return found


_OLD = ("optimizer", "optimizer_config", "lr_config", "runner", "total_epochs", "fp16", "data")


def _rule(options: dict[str, Any]) -> dict[str, Any]:
    """An own rate or decay of some parameters."""
    options = dict(options)
    if "weight_decay" in options:
        options["decay_mult"] = options.pop("weight_decay")  # 0 there, which is 0 times anything
    return options


def _schedulers(given: dict[str, Any], epochs: int | None) -> list[dict[str, Any]]:
    policy = str(given.get("policy", "")).lower()
    kind = _POLICIES.get(policy, given.get("policy"))
    by_epoch = given.get("by_epoch", True)
    found = []
    if given.get("warmup") is not None:
        unit = {} if given.get("warmup_by_epoch", False) else {"by_epoch": False}
        found.append(
            {
                "type": "LinearLR",
                "start_factor": given.get("warmup_ratio", 0.1),
                "end": given.get("warmup_iters", 0),
                "convert_to_iter_based": True,
                **unit,
            }
        )
    if kind == "MultiStepLR":
        steps = given.get("step", [])
        found.append(
            {
                "type": kind,
                "milestones": steps if isinstance(steps, list) else list(range(steps, epochs or steps + 1, steps)),
                "gamma": given.get("gamma", 0.1),
            }
        )
    elif kind is not None:
        scheduler = {"type": kind, "by_epoch": by_epoch}
        if "min_lr" in given:
            scheduler["eta_min"] = given["min_lr"]
        elif "min_lr_ratio" in given:
            scheduler["eta_min_ratio"] = given["min_lr_ratio"]
        found.append(scheduler)
    return found
