"""OpenMMLab's loaders, optimizers, schedules and hooks as the sections `train` and `optim` of a recipe."""

from __future__ import annotations

import re
from typing import Any

from .config_source import Source, inline
from .mmselfsup_groups import groups

_OPTIMIZERS = {"SGD": "sgd", "AdamW": "adamw", "LARS": "lars"}
# what an optimizer takes, and does where a configuration is silent, which is not what headrace does
_SILENT = {
    "AdamW": {"betas": [0.9, 0.999], "weight_decay": 0.01},
    "SGD": {"momentum": 0.0, "weight_decay": 0.0},
    "LARS": {"momentum": 0.0, "weight_decay": 0.0},
}
_MORE = {"AdamW": {"eps": "eps"}, "SGD": {"nesterov": "nesterov"}, "LARS": {"eps": "eps", "eta": "trust"}}
_NONE = {"amsgrad": False, "dampening": 0, "maximize": False}
_NAMED = r"(?<![^_-])(\d+)xb(\d+)"


def train(source: Source, name: str) -> dict[str, Any]:
    """The section `train`; hooks and what is around them add to it."""
    found: dict[str, Any] = {}
    batch, named = source.take("train_dataloader.batch_size"), re.search(_NAMED, name)
    if batch is not None:
        scaled = source.get("auto_scale_lr.base_batch_size")
        processes = int(named[1]) if named else max(1, scaled // batch) if scaled else 8
        found["batch_size"] = batch * processes
        if named and int(named[2]) != batch:
            source.report.without.append(f"train_dataloader.batch_size = {batch}, but the file's name has {named[0]}")
        if not named:
            source.take("auto_scale_lr.base_batch_size")
    for theirs, own in (("max_epochs", "epochs"), ("max_iters", "max_steps")):
        if (length := source.take(f"train_cfg.{theirs}")) is not None:
            found[own] = length
    source.same("train_cfg.type", "EpochBasedTrainLoop", "IterBasedTrainLoop")
    source.same("train_cfg.by_epoch", "epochs" in found)
    kind = str(source.get("optim_wrapper.type")).rpartition(".")[2]
    if kind == "AmpOptimWrapper":
        half = source.get("optim_wrapper.dtype") == "bfloat16"
        found["precision"] = "bf16" if half and source.take("optim_wrapper.dtype") else "fp16"
        source.same("optim_wrapper.dtype", "float16")
        source.take("optim_wrapper.type")
        source.same("optim_wrapper.loss_scale", "dynamic")
    source.same("optim_wrapper.type", "OptimWrapper")
    if (steps := source.take("optim_wrapper.accumulative_counts")) is not None:
        found["accumulate"] = steps
        if batch is not None:
            found["batch_size"] *= steps
    source.same("auto_scale_lr.base_batch_size", found.get("batch_size"))
    _seed(source, found)
    _loader(source)
    return found


def _seed(source: Source, found: dict[str, Any]) -> None:
    if source.get("randomness.seed") is None:
        source.put_aside("randomness.seed")
    else:
        found["seed"] = source.take("randomness.seed")
    if source.take("randomness.deterministic", False):
        found["deterministic"] = True
    source.same("randomness.diff_rank_seed", True)


def _loader(source: Source) -> None:
    at = "train_dataloader"
    source.same(f"{at}.drop_last", True)
    source.same(f"{at}.sampler.type", "DefaultSampler", "DeepClusterSampler")
    source.same(f"{at}.sampler.shuffle", True)
    source.same(f"{at}.collate_fn.type", "default_collate")
    for key in ("num_workers", "persistent_workers", "pin_memory", "prefetch_factor"):
        source.put_aside(f"{at}.{key}")
    for key in source.keys(f"{at}.dataset"):
        if key not in ("pipeline", "pipelines"):
            source.put_aside(f"{at}.dataset.{key}")


def optim(source: Source, method: str, run: dict[str, Any]) -> dict[str, Any]:
    """The section `optim`, given `train`."""
    at = "optim_wrapper.optimizer"
    kind = str(source.get(f"{at}.type")).rpartition(".")[2]
    if kind not in _OPTIMIZERS:
        return {}
    source.take(f"{at}.type")
    found: dict[str, Any] = {"name": _OPTIMIZERS[kind], "lr": source.take(f"{at}.lr")}
    if "batch_size" in run:
        found["lr_batch"] = None  # the rate is that of this batch size
    for key, silent in _SILENT[kind].items():
        found[key] = source.take(f"{at}.{key}", silent)
    for theirs, own in _MORE[kind].items():
        if (value := source.take(f"{at}.{theirs}")) is not None:
            found[own] = value
    for key, value in _NONE.items():
        source.same(f"{at}.{key}", value)
    _schedules(source, found, {key == "epochs": run[key] for key in ("epochs", "max_steps") if key in run})
    found |= groups(source, method, found)
    if (largest := source.take("optim_wrapper.clip_grad.max_norm")) is not None:
        found["clip_grad"] = largest
    source.same("optim_wrapper.clip_grad.norm_type", 2)
    source.same("optim_wrapper.clip_grad.error_if_nonfinite", False)
    return found


def _schedules(source: Source, found: dict[str, Any], lengths: dict[bool, int]) -> None:
    """One warm-up and one schedule after it; `lengths` are the run's, by whether epochs are counted."""
    start, seen = 0, set()
    for number in source.indices("param_scheduler"):
        at = f"param_scheduler.{number}"
        kind = str(source.get(f"{at}.type")).rpartition(".")[2]
        if kind not in _SCHEDULES or (kind == "LinearLR") in seen:
            continue
        seen.add(kind == "LinearLR")
        source.take(f"{at}.type")
        by_epoch = source.take(f"{at}.by_epoch", True)
        length = lengths.get(by_epoch)
        start = _SCHEDULES[kind](source, at, found, start, by_epoch, length)
        if length is not None:
            source.same(f"{at}.end", length)


def _warmup(source: Source, at: str, found: dict[str, Any], start: int, by_epoch: bool, length: int | None) -> int:
    end = source.take(f"{at}.end", 0)
    found["warmup"] = f"{end} {'epochs' if by_epoch else 'steps'}"
    found["warmup_from"] = source.take(f"{at}.start_factor", 1 / 3)
    source.same(f"{at}.begin", start)
    source.same(f"{at}.end_factor", 1.0)
    source.same(f"{at}.convert_to_iter_based", True)
    return end


def _multistep(source: Source, at: str, found: dict[str, Any], start: int, by_epoch: bool, length: int | None) -> int:
    if milestones := source.take(f"{at}.milestones"):
        found |= {"schedule": "multistep", "milestones": milestones if by_epoch else [f"{m} steps" for m in milestones]}
        found["gamma"] = source.take(f"{at}.gamma", 0.1)
    source.same(f"{at}.begin", 0)  # they count from it
    source.same(f"{at}.convert_to_iter_based", False, True)
    return start


def _cosine(source: Source, at: str, found: dict[str, Any], start: int, by_epoch: bool, length: int | None) -> int:
    minimum = source.take(f"{at}.eta_min", 0)
    last = source.take(f"{at}.eta_min_ratio", minimum / found["lr"])
    if last:
        found["final_lr"] = last
    if not source.take(f"{at}.convert_to_iter_based", False) and by_epoch:
        found["per_epoch"] = True
    end = source.get(f"{at}.end", length)
    if end is not None:
        source.same(f"{at}.T_max", end - source.get(f"{at}.begin", 0))
    source.same(f"{at}.begin", start)
    return start


_SCHEDULES = {"LinearLR": _warmup, "MultiStepLR": _multistep, "CosineAnnealingLR": _cosine}


# a hook's type: its settings that arrive in the algorithm, and those that are as here
_HOOKS: dict[str, tuple[dict[str, str], dict[str, Any]]] = {
    "SwAVHook": (
        {
            "queue_length": "queue",
            "epoch_queue_starts": "queue_from",
            "frozen_layers_cfg.prototypes": "freeze_prototypes",
        },
        {"batch_size": "@batch", "crops_for_assign": [0, 1], "feat_dim": "@projection", "interval": 1},
    ),
    "SimSiamHook": ({}, {"fix_pred_lr": True, "lr": "@lr", "adjust_by_epoch": True}),
    "DenseCLHook": ({"start_iters": "dense_from"}, {}),
    "DeepClusterHook": (
        {"clustering.pca_dim": "components"},
        {
            "clustering.type": "Kmeans",
            "clustering.k": "@clusters",
            "unif_sampling": True,
            "reweight": False,
            "reweight_pow": 0.5,
            "initial": True,
            "interval": 1,
        },
    ),
    "ODCHook": (
        {"centroids_update_interval": "centroids_every"},
        {"deal_with_small_clusters_interval": 1, "reweight": True, "reweight_pow": 0.5},
    ),
    **dict.fromkeys(("BYOLHook", "MomentumUpdateHook"), ({}, {"end_momentum": 1.0, "update_interval": "@accumulate"})),
}
_OF_ODC = {  # whose clusters are those of the first epoch's features, and then kept up to date
    "clustering.type": "Kmeans",
    "clustering.k": "@clusters",
    "clustering.pca_dim": -1,
    "unif_sampling": False,
    "reweight": True,
    "reweight_pow": 0.5,
    "init_memory": True,
    "initial": True,
    "interval": 9999999999,
}


def hooks(
    source: Source,
    method: str,
    algorithm: dict[str, Any],
    known: dict[str, Any],
    run: dict[str, Any],
    rates: dict[str, Any],
) -> None:
    """What a method does beside its loss, and, of the runner's own hooks, what is logged and kept."""
    known = known | {"accumulate": run.get("accumulate", 1), "lr": rates.get("lr")}
    present = set()
    for number in source.indices("custom_hooks"):
        at = f"custom_hooks.{number}"
        kind = str(source.get(f"{at}.type")).rpartition(".")[2]
        if kind not in _HOOKS:
            continue
        present.add(kind)
        source.take(f"{at}.type")
        arrives, same = _HOOKS[kind]
        if (kind, method) == ("DeepClusterHook", "odc"):
            arrives, same = {}, _OF_ODC
        for theirs, own in arrives.items():
            if (value := source.take(f"{at}.{theirs}")) is not None:
                algorithm[own] = value
        known |= {key: value for key, value in algorithm.items() if isinstance(value, (int, float))}
        for key, here in same.items():
            fact = known.get(here[1:]) if isinstance(here, str) and here.startswith("@") else here
            source.same(f"{at}.{key}", fact)
        for key in ("priority", "extract_dataloader", "extractor", "evaluate_interval"):
            source.put_aside(f"{at}.{key}")
    if method == "swav" and "SwAVHook" not in present:
        algorithm |= {"queue": 0, "freeze_prototypes": 0}
    if "DenseCLHook" in present and "dense_from" not in algorithm:
        algorithm["dense_from"] = 1000
    _kept(source, run)


def _kept(source: Source, found: dict[str, Any]) -> None:
    at = "default_hooks"
    for theirs, own in (("logger.interval", "log_every"), ("checkpoint.max_keep_ckpts", "keep")):
        if isinstance(value := source.get(f"{at}.{theirs}"), int) and value > 0:
            found[own] = source.take(f"{at}.{theirs}")
    if source.get(f"{at}.checkpoint.by_epoch") is False and "checkpoint" in source.keys(at):
        source.take(f"{at}.checkpoint.by_epoch")
        found["save_every"] = source.take(f"{at}.checkpoint.interval", 1)
    if (interval := source.take(f"{at}.checkpoint.interval")) is not None:
        source.report.without.append(f"{at}.checkpoint.interval = {interval} epochs; train.save_every counts steps")
    source.same(f"{at}.checkpoint.by_epoch", True)
    source.same(f"{at}.checkpoint.save_last", True)
    for key in ("logger.type", "checkpoint.type", "checkpoint.out_dir", "logger.hooks"):
        source.put_aside(f"{at}.{key}")
    for key in ("runtime_info", "timer", "param_scheduler", "sampler_seed", "visualization"):
        source.put_aside(f"{at}.{key}")


_SURROUNDINGS = ("env_cfg", "log_processor", "visualizer", "vis_backends", "custom_imports", "find_unused_parameters")
_SURROUNDINGS += (
    "dist_params",
    "workflow",
    "log_config",
    "vis_pipeline",
    "auto_scale_lr.enable",
    "data.val",
    "data.test",
)
_EVALUATION = re.compile(r"^(val|test)_(dataloader|evaluator|cfg|pipeline)$")


def surroundings(source: Source, run: dict[str, Any]) -> None:
    """What a run starts from, and what it runs in."""
    if (resume := source.take("resume")) is True:
        run["resume"] = "auto"
    elif resume is not None:
        source.report.aside.append(f"resume = {resume}; a run here continues what its folder holds: train.resume")
    for key in ("load_from", "resume_from", "model.pretrained", "model.init_cfg"):
        if source.get(key, ...) is None:
            source.put_aside(key)
    if (start := source.take("load_from")) is not None:
        source.report.without.append(f"load_from = {inline(start)}; headrace import takes its encoder over")
    for key in (*_SURROUNDINGS, *(key for key in source.keys() if _EVALUATION.search(key))):
        source.put_aside(key)
