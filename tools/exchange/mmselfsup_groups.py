"""OpenMMLab's rules for some parameters (`paramwise_cfg`) as `exempt` and `groups` of a recipe."""

from __future__ import annotations

import re
from typing import Any

from .config_source import Source, inline

_AT = ("optim_wrapper", "paramwise_cfg")
# their keys are parts of parameter names, which are others here: those that all code bases share are of a kind
_KINDS = (
    ("table", r"relative_position_bias_table"),
    ("vector", r"[qv]_bias|gamma"),
    ("class", r"cls_token"),
    ("mask", r"mask_token"),
    ("positions", r"pos_embed"),
    ("norm", r"bn|ln|norm|gn|downsample"),
    ("bias", r"bias"),
)
_TOKENS = {"mask": "mask_token", "class": "cls_token"}
# methods with parameters of that name
_HAS_MASK = ("beit", "beitv2", "cae", "eva", "mae", "mae_hivit", "maskfeat", "milan", "mixmim", "pixmim", "simmim")
_HAS_CLASS = ("beit", "beitv2", "cae", "eva", "mae", "maskfeat", "milan", "pixmim")
_LEARNED_POSITIONS = ("maskfeat",)
_LEARNERS = {"neck": r"^head\.", "head": r"^predictor\.", "predictor": r"^predictor\."}
# their parts of a method -> our parameters
_PARTS: dict[str, dict[str, str]] = {
    **dict.fromkeys(("byol", "mocov3", "simsiam"), _LEARNERS),
    **dict.fromkeys(("deepcluster", "odc"), {"neck": r"^head\.", "head": r"^classifier\."}),
    **dict.fromkeys(("barlowtwins", "densecl", "moco", "npid", "simclr"), {"neck": r"^head\."}),
    **dict.fromkeys(("mae", "mae_hivit", "milan", "mixmim", "pixmim", "eva"), {"neck": r"^decoder\."}),
    "relative_loc": {"neck": r"^head\.[01]\.", "head": r"^head\.4\."},
    "rotation_pred": {"head": r"^head\."},
    "swav": {"neck": r"^head\.", "head": r"^prototypes\."},
}
_NORMS_AND_BIASES = r"bias|bn|downsample\.1|head\.[14]\."  # in heads of three layers the second is a norm


def groups(source: Source, method: str, optim: dict[str, Any]) -> dict[str, Any]:
    """The keys `exempt` and `groups`. A rule that they do not say in full is left in the source."""
    lars, decay = optim["name"] == "lars", optim["weight_decay"]
    free, rates, found = set(), {}, []
    for key in source.keys((*_AT, "custom_keys")):
        at = (*_AT, "custom_keys", key)
        kind = next((kind for kind, pattern in _KINDS if re.search(pattern, key)), None)
        exempt = source.get((*at, "decay_mult")) == 0 and (not lars or source.get((*at, "lars_exclude")) is True)
        parts = _PARTS.get(method, {})
        part = next((own for word, own in parts.items() if re.fullmatch(rf"(\^|\\A)?{word}\.?", key)), None)
        if kind and exempt and not (kind == "positions" and method in _LEARNED_POSITIONS):
            free.add(kind)
            _arrives(source, at, "decay_mult", "lars_exclude")
        if kind in ("norm", "bias") and (rate := source.get((*at, "lr_mult"))) is not None:
            rates[key] = rate
        if kind is None and part:
            found += _of_a_part(source, at, part, decay)
    for theirs, kind in (("norm_decay_mult", "norm"), ("bias_decay_mult", "bias")):
        if source.get((*_AT, theirs)) == 0 and not lars:
            free.add(kind)
            _arrives(source, (*_AT,), theirs)
    if {"norm", "bias"} <= free:
        source.same((*_AT, "flat_decay_mult"), 0.0)
    if len(set(rates.values())) == 1:
        found.insert(0, {"match": _NORMS_AND_BIASES, "lr": next(iter(rates.values()))})
        for key in rates:
            _arrives(source, (*_AT, "custom_keys", key), "lr_mult")
    if "table" in free:
        found.append({"match": "bias_table", "weight_decay": 0.0})
    section: dict[str, Any] = {"exempt": _exempt(free)}
    if section["exempt"] == "vectors" and decay and not lars:
        tokens = (("mask", _HAS_MASK), ("class", _HAS_CLASS))
        missing = [kind for kind, has in tokens if method in has and kind not in free]
        if missing:
            found.append({"match": "|".join(_TOKENS[kind] for kind in missing), "weight_decay": decay})
    return section | ({"groups": found} if found else {})


def _arrives(source: Source, at: tuple, *keys: str) -> None:
    """Said with the kind's other rules: that a rule is there is seen in the report, since it has no line of its own."""
    for key in keys:
        if (value := source.take((*at, key))) is not None:
            rule = f"{'.'.join(map(str, at))}.{key} = {inline(value)}"
            source.report.same.append(f"{rule}, by optim.exempt and optim.groups")


def _exempt(free: set[str]) -> Any:
    if {"norm", "bias"} <= free:
        return "vectors"
    patterns = [pattern for kind, pattern in (("norm", r"norm|bn|downsample\.1"), ("bias", "bias")) if kind in free]
    return patterns or "none"


def _of_a_part(source: Source, at: tuple, part: str, decay: float) -> list[dict[str, Any]]:
    """A rule for all parameters of a head, neck or predictor."""
    group: dict[str, Any] = {}
    if source.get((*at, "fix_lr")) is True:
        group["fixed_lr"] = source.take((*at, "fix_lr"))
    for theirs, own in (("momentum", "momentum"), ("lr_mult", "lr")):
        if (value := source.take((*at, theirs))) is not None:
            group[own] = value
    if (factor := source.take((*at, "decay_mult"))) is not None:
        group["weight_decay"] = factor * decay
    return [{"match": part, **group}] if group else []
