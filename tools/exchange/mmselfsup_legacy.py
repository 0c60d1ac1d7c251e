"""Configurations of MMSelfSup 0.x in the words of 1.x.

Values move; what is not understood stays where it is, and is then reported under its old name.
"""

from __future__ import annotations

from typing import Any

from .config_source import Source, copied

_POLICIES = {
    "cosineannealing": "CosineAnnealingLR",
    "stepfixcosineannealing": "CosineAnnealingLR",
    "step": "MultiStepLR",
}
_MOVES = {  # there -> 1.x
    "data.samples_per_gpu": "train_dataloader.batch_size",
    "data.workers_per_gpu": "train_dataloader.num_workers",
    "data.drop_last": "train_dataloader.drop_last",
    "data.train": "train_dataloader.dataset",
    "optimizer": "optim_wrapper.optimizer",
    "optimizer_config.grad_clip": "optim_wrapper.clip_grad",
    "optimizer_config.update_interval": "optim_wrapper.accumulative_counts",
    "fp16.loss_scale": "optim_wrapper.loss_scale",
    "total_epochs": "train_cfg.max_epochs",
    "runner.max_epochs": "train_cfg.max_epochs",
    "runner.max_iters": "train_cfg.max_iters",
    "checkpoint_config.interval": "default_hooks.checkpoint.interval",
    "checkpoint_config.max_keep_ckpts": "default_hooks.checkpoint.max_keep_ckpts",
    "checkpoint_config.by_epoch": "default_hooks.checkpoint.by_epoch",
    "checkpoint_config.out_dir": "default_hooks.checkpoint.out_dir",
    "log_config.interval": "default_hooks.logger.interval",
    "seed": "randomness.seed",
    "deterministic": "randomness.deterministic",
}
_RUNNERS = {"EpochBasedRunner": "EpochBasedTrainLoop", "IterBasedRunner": "IterBasedTrainLoop"}


def modern(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration with 1.x's keys; one that has no keys of 0.x is a copy of it."""
    config = copied(config)
    if isinstance(config.get("param_scheduler"), dict):
        config["param_scheduler"] = [config["param_scheduler"]]
    if "optimizer" not in config or "optim_wrapper" in config:
        return config
    old = Source(config)
    found: dict[str, Any] = {}
    half = "fp16" in config or "Fp16" in str(old.get("optimizer_config.type"))
    _put(found, "optim_wrapper.type", "AmpOptimWrapper" if half else "OptimWrapper")
    if str(old.get("optimizer_config.type")).endswith("OptimizerHook"):
        old.take("optimizer_config.type")
    for there, here in _MOVES.items():
        value = old.take(there, ...)
        if value is not ...:
            _put(found, here, value)
    if old.get("runner.type") in _RUNNERS:
        _put(found, "train_cfg.type", _RUNNERS[old.take("runner.type")])
    _put(found, "optim_wrapper.paramwise_cfg", _rules(found["optim_wrapper"]["optimizer"]))
    if schedulers := _schedulers(old, found.get("train_cfg", {}).get("max_epochs")):
        found["param_scheduler"] = schedulers
    _normalization(found)
    left = old.rest()
    more = left.get("optimizer_config") or {}
    for hook in left.get("custom_hooks") or []:
        if isinstance(hook, dict) and hook.get("type") == "SwAVHook" and "frozen_layers_cfg" in more:
            hook["frozen_layers_cfg"] = more.pop("frozen_layers_cfg")
    return left | found


def _put(config: dict[str, Any], path: str, value: Any) -> None:
    *outer, last = path.split(".")
    for key in outer:
        config = config.setdefault(key, {})
    config[last] = value


def _rules(optimizer: dict[str, Any]) -> dict[str, Any]:
    """`paramwise_options` give a decay itself, which is a multiple of the optimizer's."""
    rules = dict(optimizer.pop("paramwise_cfg", None) or {})
    custom = dict(rules.pop("custom_keys", None) or {})
    decay = optimizer.get("weight_decay")
    for key, options in (optimizer.pop("paramwise_options", None) or {}).items():
        own = dict(options)
        if own.get("weight_decay") == 0 or decay and "weight_decay" in own:
            own["decay_mult"] = round(own.pop("weight_decay") / (decay or 1), 9)
        custom[key] = own
    return rules | {"custom_keys": custom}


def _schedulers(old: Source, epochs: int | None) -> list[dict[str, Any]]:
    policy = str(old.get("lr_config.policy", ""))
    kind = _POLICIES.get(policy.lower())
    by_epoch = old.take("lr_config.by_epoch", True)
    found = []
    if old.get("lr_config.warmup") == "linear":
        old.take("lr_config.warmup")
        unit = {} if old.take("lr_config.warmup_by_epoch", False) else {"by_epoch": False}
        found.append(
            {
                "type": "LinearLR",
                "start_factor": old.take("lr_config.warmup_ratio", 0.1),
                "end": old.take("lr_config.warmup_iters", 0),
                "convert_to_iter_based": True,
                **unit,
            }
        )
    if kind is not None:
        old.take("lr_config.policy")
    if kind == "MultiStepLR":
        steps = old.take("lr_config.step", [])
        steps = steps if isinstance(steps, list) else list(range(steps, epochs or steps + 1, steps))
        gamma = old.take("lr_config.gamma", 0.1)
        found.append({"type": kind, "milestones": steps, "gamma": gamma, "by_epoch": by_epoch})
    elif kind is not None:
        scheduler = {"type": kind, "by_epoch": by_epoch}
        for theirs, here in (("min_lr", "eta_min"), ("min_lr_ratio", "eta_min_ratio")):
            if (value := old.take(f"lr_config.{theirs}")) is not None:
                scheduler[here] = value
        found.append(scheduler)
    return found


def _normalization(found: dict[str, Any]) -> None:
    """Mean and deviation in [0, 1], which every pipeline ends with -> those of the preprocessor, which are of bytes."""
    dataset = (found.get("train_dataloader") or {}).get("dataset")
    if not isinstance(dataset, dict):
        return
    pipelines = [dataset.get("pipeline"), dataset.get("format_pipeline"), *(dataset.get("pipelines") or [])]
    last = [step for one in pipelines if isinstance(one, list) for step in one if isinstance(step, dict)]
    last = [step for step in last if step.get("type") == "Normalize"]
    for key in ("mean", "std"):
        values = [step.get(key) for step in last]
        if values and isinstance(values[0], list) and all(value == values[0] for value in values):
            for step in last:
                step.pop(key)
            found.setdefault("data_preprocessor", {})[key] = [round(255 * value, 6) for value in values[0]]
