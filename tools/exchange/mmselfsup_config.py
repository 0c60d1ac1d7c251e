"""OpenMMLab's self-supervised configurations as recipes of headrace."""

from __future__ import annotations

import re
from typing import Any

from ...errors import UserError
from .mmselfsup_legacy import modern

ALGORITHMS = {
    "BYOL": "byol",
    "BarlowTwins": "barlowtwins",
    "BEiT": "beit",
    "CAE": "cae",
    "DeepCluster": "deepcluster",
    "DenseCL": "densecl",
    "EVA": "eva",
    "MAE": "mae",
    "MaskFeat": "maskfeat",
    "MILAN": "milan",
    "MixMIM": "mixmim",
    "MoCo": "moco",
    "MoCoV3": "mocov3",
    "NPID": "npid",
    "ODC": "odc",
    "PixMIM": "pixmim",
    "RelativeLocation": "relative_loc",
    "RotationPred": "rotation_pred",
    "SimCLR": "simclr",
    "SimMIM": "simmim",
    "SimSiam": "simsiam",
    "SwAV": "swav",
}
_OPTIMIZERS = {"SGD": "sgd", "AdamW": "adamw", "LARS": "lars"}
_VIT_SIZES = {"b": "vit_base", "base": "vit_base", "l": "vit_large", "large": "vit_large", "h": "vit_huge"}
_VIT_SIZES |= {"huge": "vit_huge", "mocov3-small": "vit_small", "s": "vit_small", "small": "vit_small"}
_WITHOUT = ("default_scope", "env_cfg", "log_level", "log_processor", "visualizer", "vis_backends", "custom_imports")


def translate(config: dict[str, Any], name: str = "") -> tuple[dict[str, Any], list[str]]:
    """A recipe as plain values, and the settings that have no counterpart, as ``key = value``.

    `name` is the file's: OpenMMLab's ``16xb256`` in it says for how many processes the rate is meant. Views are those
    of the method's own recipe in headrace, which are the published ones: pipelines are listed, not translated. Raises
    `UserError` where the model is none that headrace has.
    """
    config = modern(config)
    model = config.get("model")
    if not isinstance(model, dict) or str(model.get("type")) not in ALGORITHMS:
        known = ", ".join(sorted(ALGORITHMS))
        kind = model.get("type") if isinstance(model, dict) else None
        raise UserError(f"model.type: {kind!r} is no algorithm of headrace; known: {known}")
    without: list[str] = []
    method = _method_name(model)
    algorithm: dict[str, Any] = {"name": method}
    backbone = _backbone(dict(model.get("backbone", {})), without)
    if backbone:
        algorithm["backbone"] = backbone
    algorithm |= _method(method, model, without)
    recipe: dict[str, Any] = {"algorithm": algorithm}
    train = _train(config, name, without)
    optim = _optim(config, without, train.get("batch_size"))
    recipe |= {"train": train} if train else {}
    recipe |= {"optim": optim} if optim else {}
    known = {"model", "train_dataloader", "optim_wrapper", "param_scheduler", "train_cfg", "resume", "load_from"}
    for key, value in config.items():
        if key.endswith("pipeline") or key in ("view_pipeline1", "view_pipeline2"):
            without.append(f"{key}: views are those of the method's recipe; see `headrace browse`")
        elif key == "auto_scale_lr" or key in known or key in _WITHOUT or not isinstance(value, dict):
            continue
        elif key in ("default_hooks", "custom_hooks"):
            without.append(f"{key}: {', '.join(value)}")
    return recipe, without


def _method_name(model: dict[str, Any]) -> str:
    """Two of theirs are told from others by their parts."""
    part = {key: str((model.get(key) or {}).get("type")) for key in ("backbone", "neck")}
    if model["type"] == "MAE" and "HiViT" in part["backbone"]:
        return "mae_hivit"
    if model["type"] == "BEiT" and "V2" in part["neck"]:
        return "beitv2"
    return ALGORITHMS[model["type"]]


def _take(section: dict, key: str, default: Any = None) -> Any:
    return section.pop(key, default)


def _rest(section: dict, place: str, without: list[str]) -> None:
    without += [f"{place}.{key} = {value}" for key, value in section.items()]


def _backbone(given: dict, without: list[str]) -> dict[str, Any]:
    kind = str(_take(given, "type", ""))
    _take(given, "init_cfg"), _take(given, "norm_cfg"), _take(given, "norm_eval"), _take(given, "frozen_stages")
    found: dict[str, Any] = {}
    if kind.startswith("ResNet") or kind == "ResNeXt":
        found = {"name": f"resnet{_take(given, 'depth', 50)}"}
        if _take(given, "in_channels", 3) == 2 or "Sobel" in kind:
            found["sobel"] = True
        _take(given, "out_indices"), _take(given, "num_stages"), _take(given, "style")
        zero = _take(given, "zero_init_residual")
        found |= {} if zero is None else {"zero_init_residual": zero}
    else:
        arch = _take(given, "arch", _take(given, "model_name", "base"))
        stems = {"Swin": "swin", "MixMIM": "mixmim", "HiViT": "hivit"}
        stem = next((own for theirs, own in stems.items() if theirs in kind), None)
        if isinstance(arch, dict):
            names = {"embed_dims": "width", "num_layers": "depth", "num_heads": "heads", "depths": "depths"}
            names |= {"feedforward_channels": "hidden"}
            found = {names[key]: value for key, value in arch.items() if key in names}
            found["name"] = f"{stem}_base" if stem else "vit_base"
        elif stem:
            long = {"t": "tiny", "s": "small", "b": "base", "l": "large", "h": "huge"}
            found = {"name": f"{stem}_{long.get(str(arch).lower(), str(arch).lower())}"}
        else:
            size = _VIT_SIZES.get(str(arch).lower())
            found = {"name": size} if size else {}
            if size is None:
                without.append(f"model.backbone.arch = {arch}")
            elif "MoCoV3" in kind:  # whose small model has 12 heads
                found["heads"] = 12 if str(arch).lower() == "mocov3-small" else None
        if (patch := _take(given, "patch_size")) is not None and not stem:
            found["patch_size"] = patch
        inner = (_take(given, "stage_cfgs") or {}).get("block_cfgs") or {}
        windows, padded = _take(given, "window_size", inner.get("window_size")), _take(given, "pad_small_map")
        if windows is not None:
            whole = isinstance(windows, list)  # one of each stage; a padded map is one window of full size
            found |= {"windows": windows if whole else [windows] * 4} if whole or padded else {"window": windows}
        if rate := _take(given, "drop_path_rate", 0.0):
            found["drop_path"] = rate
        if _take(given, "stop_grad_conv1"):
            found["freeze_patch_embed"] = True
        scale = _take(given, "layer_scale_init_value")
        found |= {"layer_scale": scale} if scale else {}
    for key in ("mask_ratio", "img_size", "range_mask_ratio", "out_indices", "out_type", "final_norm", "avg_token"):
        _take(given, key)  # said elsewhere here, or what the method needs in any case
    _take(given, "use_abs_pos_emb"), _take(given, "use_shared_rel_pos_bias"), _take(given, "use_rel_pos_bias")
    _rest(given, "model.backbone", without)
    return found


def _method(name: str, model: dict, without: list[str]) -> dict[str, Any]:
    """What configures a method beside its encoder."""
    neck, head, backbone = (dict(model.get(part) or {}) for part in ("neck", "head", "backbone"))
    found: dict[str, Any] = {}
    if "mask_ratio" in backbone and name in ("mae", "pixmim", "milan", "eva", "mixmim"):
        found["mask_ratio"] = backbone["mask_ratio"]
    if name == "mixmim" and "range_mask_ratio" in backbone:
        found["mask_spread"] = backbone["range_mask_ratio"]
    decoder = {
        own: neck[theirs]
        for theirs, own in (
            ("decoder_embed_dim", "width"),
            ("decoder_depth", "depth"),
            ("decoder_num_heads", "heads"),
        )
        if theirs in neck
    }
    if decoder and name in ("mae", "pixmim", "milan", "eva", "mixmim"):
        found["decoder"] = decoder
    if name in ("simclr", "byol", "moco", "densecl", "swav", "mocov3", "odc") and "hid_channels" in neck:
        found |= {"hidden": neck["hid_channels"], "projection": neck["out_channels"]}
    if name in ("npid", "barlowtwins", "simsiam") and "out_channels" in neck:
        found["projection"] = neck["out_channels"]
    if name == "moco" and neck.get("type") == "LinearNeck":
        found |= {"hidden": None, "projection": neck.get("out_channels", 128), "view": "moco_v1"}
    if name in ("moco", "densecl") and "queue_len" in model:
        found["queue"] = model["queue_len"]
    for key in ("momentum", "base_momentum"):
        if key in model and name in ("moco", "densecl", "byol", "mocov3"):
            # the share of the old weights in 0.x, of the new ones since
            found["momentum"] = model[key] if model[key] > 0.5 else round(1 - model[key], 9)
    if name == "mocov3" and str(backbone.get("type")).startswith("ResNet"):
        found |= {"first": "moco_v3_resnet.first", "second": "moco_v3_resnet.second"}
    if name == "densecl" and "loss_lambda" in model:
        found["dense_weight"] = model["loss_lambda"]
    if name in ("odc", "deepcluster") and "num_classes" in head:
        found["clusters"] = head["num_classes"]
    if name == "npid" and "neg_num" in model:
        found["negatives"] = model["neg_num"]
    if name == "npid" and model.get("ensure_neg"):
        found["exclude_self"] = True
    if name == "beitv2":
        found |= {own: neck[theirs] for theirs, own in (("num_layers", "neck_depth"),) if theirs in neck}
        found |= {"early_block": neck["early_layers"] - 1} if "early_layers" in neck else {}
    temperature = head.get(
        "temperature", head.get("loss", {}).get("temperature") if isinstance(head.get("loss"), dict) else None
    )
    if temperature is not None and name in ("simclr", "moco", "mocov3", "npid", "densecl", "swav"):
        found["temperature"] = temperature
    if name == "mae" and "norm_pix" in head:
        found["normalize_pixels"] = head["norm_pix"]
    return found


def _train(config: dict, name: str, without: list[str]) -> dict[str, Any]:
    loader, found = config.get("train_dataloader") or {}, {}
    if "batch_size" in loader:
        named = re.search(_NAMED, name)
        found["batch_size"] = loader["batch_size"] * (int(named[1]) if named else _processes(config))
        if named and int(named[2]) != loader["batch_size"]:
            without.append(f"train_dataloader.batch_size = {loader['batch_size']}, but the file's name has {named[0]}")
    if (epochs := (config.get("train_cfg") or {}).get("max_epochs")) is not None:
        found["epochs"] = epochs
    wrapper = config.get("optim_wrapper") or {}
    if wrapper.get("type") == "AmpOptimWrapper":
        found["precision"] = "bf16" if wrapper.get("dtype") == "bfloat16" else "fp16"
    if (steps := wrapper.get("accumulative_counts")) is not None:
        found["accumulate"] = steps
        if "batch_size" in found:
            found["batch_size"] *= steps
    return found


_NAMED = r"(?<![^_-])(\d+)xb(\d+)"


def _processes(config: dict) -> int:
    """How many the rate is meant for: by the base batch size of `auto_scale_lr`, or 8."""
    loader, scaled = config.get("train_dataloader") or {}, config.get("auto_scale_lr") or {}
    if "base_batch_size" in scaled and loader.get("batch_size"):
        return max(1, scaled["base_batch_size"] // loader["batch_size"])
    return 8


# what an optimizer does where a configuration is silent, which is not what headrace does
_DEFAULTS = {
    "AdamW": {"betas": [0.9, 0.999], "weight_decay": 0.01},
    "SGD": {"momentum": 0.0, "weight_decay": 0.0},
    "LARS": {"momentum": 0.0, "weight_decay": 0.0},
}


def _optim(config: dict, without: list[str], batch: int | None) -> dict[str, Any]:
    wrapper = dict(config.get("optim_wrapper") or {})
    given = dict(wrapper.get("optimizer") or {})
    if not given:
        return {}
    kind = _take(given, "type")
    if kind not in _OPTIMIZERS:
        without.append(f"optim_wrapper.optimizer.type = {kind}")
        return {}
    found: dict[str, Any] = {"name": _OPTIMIZERS[kind], "lr": _take(given, "lr")}
    if batch is not None:
        found["lr_batch"] = None  # the rate is that of this batch size
    for key, silent in _DEFAULTS[kind].items():
        found[key] = _take(given, key, silent)
    _rest(given, "optim_wrapper.optimizer", without)
    for schedule in config.get("param_scheduler") or []:
        found |= _schedule(schedule, found["lr"], without)
    found |= _groups(wrapper.get("paramwise_cfg") or {}, without)
    if (largest := (wrapper.get("clip_grad") or {}).get("max_norm")) is not None:
        found["clip_grad"] = largest
    return found


def _schedule(given: dict, peak: float, without: list[str]) -> dict[str, Any]:
    kind = given.get("type")
    if kind == "LinearLR" and "end" in given:
        unit = "epochs" if given.get("by_epoch", True) else "steps"
        return {"warmup": f"{given['end']} {unit}", "warmup_from": given.get("start_factor", 1 / 3)}
    if kind == "MultiStepLR":
        return {"schedule": "multistep", "milestones": given["milestones"], "gamma": given.get("gamma", 0.1)}
    if kind != "CosineAnnealingLR":
        without.append(f"param_scheduler: {kind}")
        return {}
    last = given.get("eta_min_ratio", given.get("eta_min", 0) / peak)
    found: dict[str, Any] = {"final_lr": last} if last else {}
    if given.get("by_epoch", True) and not given.get("convert_to_iter_based"):
        found["per_epoch"] = True
    return found


def _groups(given: dict, without: list[str]) -> dict[str, Any]:
    """Their keys are parts of parameter names, which are others here: only those that all code bases share are said."""
    rules = dict(given.get("custom_keys") or {})
    free = [key for key, rule in rules.items() if rule.get("decay_mult") == 0]
    free += [key for key in ("norm_decay_mult", "bias_decay_mult") if given.get(key) == 0]
    found: dict[str, Any] = {"exempt": "vectors" if any(re.search(r"bn|ln|norm|bias", key) for key in free) else "none"}
    rates = {rule["lr_mult"] for key, rule in rules.items() if re.search(r"bn|bias", key) and "lr_mult" in rule}
    groups = []
    if len(rates) == 1:  # those of batch norms, which in heads are the second of three layers, and of biases
        groups.append({"match": r"bias|bn|downsample\.1|head\.[14]\.", "lr": rates.pop()})
    for key, rule in rules.items():
        if "predictor" in key and rule.get("fix_lr"):
            groups.append({"match": r"^predictor\.", "fixed_lr": True})
        elif "relative_position_bias_table" in key and rule.get("decay_mult") == 0:
            groups.append({"match": "bias_table", "weight_decay": 0.0})
        elif not re.search(r"bn|ln|norm|bias|downsample", key):
            without.append(f"optim_wrapper.paramwise_cfg.{key} = {rule}")
    return found | ({"groups": groups} if groups else {})
