"""Reads configurations of MMSelfSup 1.x without running them, and says them as recipes of headrace."""

from __future__ import annotations

import ast
import operator
from pathlib import Path
from typing import Any

from ..errors import UserError

_DEEPEST = 6  # levels of _base_
_ARITHMETIC = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
}


def read_config(path: Path, depth: int = 0) -> dict[str, Any]:
    """The top-level names of a configuration, merged over those of its `_base_` files.

    Understood are literals, names assigned before, ``dict(...)``, ``_base_.a.b``, subscripts, and arithmetic. Raises
    `UserError` with file and line for anything else: functions, loops and imports are never executed.
    """
    if depth > _DEEPEST:
        raise UserError(f"{path}: _base_ files nest more than {_DEEPEST} deep; do they name each other?")
    try:
        tree = ast.parse(path.read_text(), str(path))
    except OSError as fault:
        raise UserError(f"{path}: {fault.strerror}") from None
    except (SyntaxError, ValueError) as fault:
        raise UserError(f"{path}: no Python ({str(fault).splitlines()[0]})") from None
    inherited: dict[str, Any] = {}
    own: dict[str, Any] = {}
    for node in tree.body:
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            continue  # a comment in quotes
        if isinstance(node, ast.AugAssign) or not isinstance(node, ast.Assign) or len(node.targets) != 1:
            raise UserError(f"{path}:{node.lineno}: only assignments are understood; nothing is executed")
        name, scope = _target(node.targets[0], path), {**inherited, **own}
        value = _value(node.value, scope, path, inherited)
        if name == ["_base_"]:
            for base in [value] if isinstance(value, str) else value:
                if "::" in base:
                    raise UserError(f"{path}:{node.lineno}: {base} lies in another package; give its path")
                inherited = _merge(inherited, read_config(path.parent / base, depth + 1))
            continue
        _assign(own, name, value, f"{path}:{node.lineno}", inherited)
    return _merge(inherited, own)


def _target(node: ast.expr, path: Path) -> list:
    if isinstance(node, ast.Name):
        return [node.id]
    if isinstance(node, ast.Attribute):
        return [*_target(node.value, path), node.attr]
    if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
        return [*_target(node.value, path), node.slice.value]
    raise UserError(f"{path}:{node.lineno}: only names and their keys are assigned to; nothing is executed")


def _assign(own: dict, name: list, value: Any, place: str, inherited: dict) -> None:
    target: Any = own
    if len(name) > 1 and name[0] not in own and name[0] in inherited:
        own[name[0]] = _copy(inherited[name[0]])
    try:
        for key in name[:-1]:
            target = target[key]
        target[name[-1]] = value
    except (KeyError, IndexError, TypeError):
        raise UserError(f"{place}: {'.'.join(map(str, name))} has nothing to be assigned in") from None


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copy(item) for key, item in value.items()}
    return [_copy(item) for item in value] if isinstance(value, list) else value


def _value(node: ast.expr, scope: dict, path: Path, inherited: dict) -> Any:
    def inner(other: ast.expr) -> Any:
        return _value(other, scope, path, inherited)

    try:
        match node:
            case ast.Constant():
                return node.value
            case ast.List() | ast.Tuple():
                return [inner(item) for item in node.elts]
            case ast.Dict():
                return {inner(key): inner(item) for key, item in zip(node.keys, node.values, strict=True)}
            case ast.Call(func=ast.Name(id="dict"), args=[]):
                found: dict = {}
                for word in node.keywords:
                    found |= inner(word.value) if word.arg is None else {word.arg: inner(word.value)}
                return found
            case ast.Name():
                return inherited if node.id == "_base_" else _copy(scope[node.id])
            case ast.Attribute():
                return inner(node.value)[node.attr]
            case ast.Subscript():
                return inner(node.value)[inner(node.slice)]
            case ast.UnaryOp(op=ast.USub()):
                return -inner(node.operand)
            case ast.BinOp() if type(node.op) in _ARITHMETIC:
                return _ARITHMETIC[type(node.op)](inner(node.left), inner(node.right))
    except (KeyError, IndexError, TypeError, ZeroDivisionError, AttributeError) as fault:
        raise UserError(f"{path}:{node.lineno}: {ast.unparse(node)[:60]}: {fault!r}") from None
    raise UserError(f"{path}:{node.lineno}: {ast.unparse(node)[:60]}: not understood; nothing is executed")


def _merge(base: Any, own: Any) -> Any:
    """Dicts merge, everything else replaces; ``_delete_=True`` drops what a dict inherits."""
    if not isinstance(base, dict) or not isinstance(own, dict):
        return own
    if own.get("_delete_"):
        return {key: value for key, value in own.items() if key != "_delete_"}
    return base | {key: _merge(base.get(key), value) for key, value in own.items()}


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


def translate(config: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """A recipe as plain values, and the settings that have no counterpart, as ``key = value``.

    Views are those of the method's own recipe in headrace, which are the published ones: pipelines are listed, not
    translated. Raises `UserError` where the model is none that headrace has.
    """
    model = config.get("model")
    if not isinstance(model, dict) or str(model.get("type")) not in ALGORITHMS:
        known = ", ".join(sorted(ALGORITHMS))
        kind = model.get("type") if isinstance(model, dict) else None
        raise UserError(f"model.type: {kind!r} is no algorithm of headrace; known: {known}")
    without: list[str] = []
    name = ALGORITHMS[model["type"]]
    algorithm: dict[str, Any] = {"name": name}
    backbone = _backbone(dict(model.get("backbone", {})), without)
    if backbone:
        algorithm["backbone"] = backbone
    algorithm |= _method(name, model, without)
    recipe: dict[str, Any] = {"algorithm": algorithm}
    train = _train(config, without)
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
        if (patch := _take(given, "patch_size")) is not None and not stem:
            found["patch_size"] = patch
        if (windows := _take(given, "window_size")) is not None:
            found |= {"windows": windows} if isinstance(windows, list) else {"window": windows}
        if rate := _take(given, "drop_path_rate", 0.0):
            found["drop_path"] = rate
        if _take(given, "stop_grad_conv1"):
            found["freeze_patch_embed"] = True
        scale = _take(given, "layer_scale_init_value")
        found |= {"layer_scale": scale} if scale else {}
    _take(given, "mask_ratio"), _take(given, "img_size"), _take(given, "range_mask_ratio")
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
    if name in ("simclr", "byol", "moco", "swav", "mocov3") and "hid_channels" in neck:
        found |= {"hidden": neck["hid_channels"], "projection": neck["out_channels"]}
    if name == "moco":
        if neck.get("type") == "LinearNeck":
            found |= {"hidden": None, "projection": neck.get("out_channels", 128)}
        found |= {"queue": model["queue_len"]} if "queue_len" in model else {}
        if "momentum" in model:  # theirs is the share of the new weights
            found["momentum"] = round(1 - model["momentum"], 9)
    temperature = head.get(
        "temperature", head.get("loss", {}).get("temperature") if isinstance(head.get("loss"), dict) else None
    )
    if temperature is not None and name in ("simclr", "moco", "mocov3", "npid", "densecl", "swav"):
        found["temperature"] = temperature
    if name == "mae" and "norm_pix" in head:
        found["normalize_pixels"] = head["norm_pix"]
    return found


def _train(config: dict, without: list[str]) -> dict[str, Any]:
    loader, found = config.get("train_dataloader") or {}, {}
    if "batch_size" in loader:
        found["batch_size"] = loader["batch_size"] * _gpus(config)
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


def _gpus(config: dict) -> int:
    """How many processes the rates are meant for, from the base batch size of `auto_scale_lr`; else 8."""
    loader, scaled = config.get("train_dataloader") or {}, config.get("auto_scale_lr") or {}
    if "base_batch_size" in scaled and loader.get("batch_size"):
        return max(1, scaled["base_batch_size"] // loader["batch_size"])
    return 8


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
    for key in ("weight_decay", "momentum", "betas"):
        if key in given:
            found[key] = _take(given, key)
    _rest(given, "optim_wrapper.optimizer", without)
    for schedule in config.get("param_scheduler") or []:
        if schedule.get("type") == "LinearLR" and "end" in schedule:
            found["warmup"] = f"{schedule['end']} epochs"
            found["warmup_from"] = schedule.get("start_factor", 1e-4)
        elif schedule.get("type") == "MultiStepLR":
            found |= {
                "schedule": "multistep",
                "milestones": schedule["milestones"],
                "gamma": schedule.get("gamma", 0.1),
            }
        elif schedule.get("type") != "CosineAnnealingLR":
            without.append(f"param_scheduler: {schedule.get('type')}")
    if custom := (wrapper.get("paramwise_cfg") or {}).get("custom_keys"):
        without.append(
            f"optim_wrapper.paramwise_cfg: norms and biases are without weight decay here; {', '.join(custom)}"
        )
    if (largest := (wrapper.get("clip_grad") or {}).get("max_norm")) is not None:
        found["clip_grad"] = largest
    return found
