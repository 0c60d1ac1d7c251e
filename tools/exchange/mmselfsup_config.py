"""OpenMMLab's self-supervised configurations as recipes of headrace."""

from __future__ import annotations

from typing import Any

from ...errors import UserError
from ...models.algorithms import find_algorithm
from ...models.backbones import ResNet
from ...pipelines.spec import ViewSpec
from ...pipelines.views.recipes import VIEWS
from . import mmselfsup_backbones as backbones
from .config_source import Report, Source, copied
from .mmselfsup_legacy import modern
from .mmselfsup_methods import ALGORITHMS, ARRIVES, CONVERTED, MASKS, SILENT, method_of
from .mmselfsup_runs import hooks, optim, surroundings, train
from .mmselfsup_same import SAME

_PER_PROCESS = ("moco", "densecl", "deepcluster", "relative_loc")  # whose batch norms are each process's own
_LARGEST = 255.0  # of a pixel, there; 1 here


def translate(config: dict[str, Any], name: str = "") -> tuple[dict[str, Any], Report]:
    """A recipe as plain values, and what became of all values of the configuration that are not in it.

    `name` is the file's: OpenMMLab's ``16xb256`` in it says for how many processes the rate is meant. Views are those
    of the method's own recipe in headrace, which are the published ones: pipelines are reported, not translated. Raises
    `UserError` where the model or its encoder is none that headrace has.
    """
    model = config.get("model")
    kind = model.get("type") if isinstance(model, dict) else None
    if str(kind).rpartition(".")[2] not in ALGORITHMS:
        raise UserError(f"model.type: {kind!r} is no algorithm of headrace; known: {', '.join(sorted(ALGORITHMS))}")
    try:
        source = Source(modern(config))
        _set_variables_aside(source, config)
        recipe = _recipe(source, name)
    except (TypeError, ValueError, AttributeError, LookupError, ArithmeticError) as fault:
        raise UserError(
            f"{name or 'configuration'}: a setting has a value that is none of its kind: {fault!r}"
        ) from None
    return recipe, source.finish()


def _recipe(source: Source, name: str) -> dict[str, Any]:
    method = method_of({**source.get("model"), "type": str(source.take("model.type")).rpartition(".")[2]})
    default = find_algorithm(method).Config()
    algorithm: dict[str, Any] = {"name": method}
    kind, encoder = backbones.backbone(source)
    if encoder:
        algorithm["backbone"] = encoder
    for path, own in ARRIVES.get(method, {}).items():
        value = source.take(f"model.{path}")
        if value is not None:
            _set(algorithm, own, CONVERTED.get((method, own), lambda same: same)(value))
    for path, silent in SILENT.get(method, {}).items():
        own = ARRIVES[method][path]
        if own not in algorithm and source.get(f"model.{path.partition('.')[0]}.type") is not None:
            algorithm[own] = silent
    if method == "moco" and str(source.get("model.neck.type")).endswith("LinearNeck"):
        algorithm |= {"hidden": None, "view": "moco_v1"}
    if method == "mocov3" and kind == "vit":
        encoder.setdefault("heads", None)  # those of the size, not of the method's own small one
    if method == "mocov3" and kind == "resnet":
        algorithm |= {"first": "moco_v3_resnet.first", "second": "moco_v3_resnet.second"}
    _mask(source, method, algorithm)
    config = backbones.built(kind, encoder, default.backbone)
    known = _facts(algorithm, default, config, method)
    known["batch"] = source.get("train_dataloader.batch_size")
    run = train(source, name)
    rates = optim(source, method, run)
    hooks(source, method, algorithm, known, run, rates)
    known |= {key: value for key, value in algorithm.items() if isinstance(value, (int, float))}
    for path, here in [*backbones.SAME[kind].items()] if kind else ():
        if f"backbone.{path}" not in SAME.get(method, {}):
            source.same(f"model.backbone.{path}", *_here(here, known))
    for path, here in SAME[method].items():
        source.same(f"model.{path}", *_here(here, known))
    source.put_aside("model.memory_bank.length")
    if method == "beitv2":
        _tokenizer(source, default.tokenizer)
    _normalization(source, algorithm, default)
    surroundings(source, run)
    return {"algorithm": algorithm} | ({"train": run} if run else {}) | ({"optim": rates} if rates else {})


def _tokenizer(source: Source, config: Any) -> None:
    """The encoder of BEiT v2's targets, which is one of those that the method can have."""
    known = backbones.facts(config)
    given = backbones.SAME["vit"] | {"arch": "@arch", "patch_size": "@patch_size", "drop_path_rate": "@drop_path"}
    given |= {"img_size": 224, "layer_scale_init_value": 0.0, "out_type": "featmap", "output_cls_token": False}
    for path, here in given.items():
        source.same(f"model.target_generator.encoder_config.{path}", *_here(here, known))


def _set(section: dict[str, Any], field: str, value: Any) -> None:
    *outer, last = field.split(".")
    for key in outer:
        section = section.setdefault(key, {})
    section[last] = value


def _here(value: Any, known: dict[str, Any]) -> tuple:
    """What a table says, with the facts filled in; several values are any of these."""
    values = value if isinstance(value, tuple) else (value,)
    found: list[Any] = []
    for one in values:
        fact = known.get(one[1:], one) if isinstance(one, str) and one.startswith("@") else one
        found += fact if isinstance(fact, tuple) else [fact]
    return tuple(found)


def _facts(algorithm: dict[str, Any], default: Any, encoder: Any, method: str) -> dict[str, Any]:
    """What settings that say something twice have to be, by name."""
    view = next((value for value in vars(default).values() if isinstance(value, ViewSpec)), ViewSpec())
    known = {key: value for key, value in vars(default).items() if isinstance(value, (int, float))}
    known |= {key: value for key, value in algorithm.items() if isinstance(value, (int, float))}
    known |= {"size": view.size, "cells": (view.size // 32) ** 2} | backbones.facts(encoder)
    attention = not isinstance(encoder, ResNet.Config)
    known |= {"attention": attention, "convolutions": not attention, "layers": 3 if attention else 2}
    known["norm"] = "BN" if method in _PER_PROCESS else "SyncBN"
    if "temperature" in known:
        known["twice_temperature"] = 2 * known["temperature"]
    if "patch_size" in known:
        known |= {"patches": (view.size // known["patch_size"]) ** 2, "grid": view.size // known["patch_size"]}
        known["stride"] = 32 if known["patch_size"] == 4 else known["patch_size"]
    if method == "swav":
        known["crops"] = [default.large.count, default.small.count]
    if method == "beitv2":
        known["early_and_last"] = [known["early_block"] - known["depth"], -1]
    return known


def _mask(source: Source, method: str, algorithm: dict[str, Any]) -> None:
    """The masks that a loader draws there, which are part of the method here."""
    at = "train_dataloader.dataset.pipeline"
    for number in source.indices(at):
        if not str(source.get(f"{at}.{number}.type")).endswith("MaskGenerator") or method not in MASKS:
            continue
        for theirs, field in MASKS[method].items():
            if source.get(f"{at}.{number}.{theirs}", ...) is not ...:
                algorithm[field] = source.take(f"{at}.{number}.{theirs}")


def _normalization(source: Source, algorithm: dict[str, Any], default: Any) -> None:
    """Mean and deviation of the images, in each view; a second pair is of the image that targets are made of."""
    words = {
        spec: f"{recipe}.{spec.name}" if len(specs) > 1 else recipe for recipe, specs in VIEWS.items() for spec in specs
    }
    at = "model.data_preprocessor" if source.get("model.data_preprocessor") else "data_preprocessor"
    for key in ("to_rgb", "bgr_to_rgb"):
        source.same(f"{at}.{key}", True)
    kinds = ("SelfSupDataPreprocessor", "TwoNormDataPreprocessor", "CAEDataPreprocessor", "RelativeLocDataPreprocessor")
    source.same(f"{at}.type", *kinds, "RotationPredDataPreprocessor", "ImgDataPreprocessor")
    views = {key: value for key, value in vars(default).items() if isinstance(value, ViewSpec)}
    for theirs, own in (("mean", "mean"), ("std", "std"), ("second_mean", "mean"), ("second_std", "std")):
        value = source.get(f"{at}.{theirs}")
        fields = [key for key in views if (key == "target_view") is theirs.startswith("second")]
        if not isinstance(value, list) or len(value) != 3 or not fields:
            continue
        if all(abs(v / _LARGEST - w) < 1e-6 for key in fields for v, w in zip(value, getattr(views[key], own))):
            source.same(f"{at}.{theirs}", copied(value))
            continue
        source.take(f"{at}.{theirs}")
        for key in fields:
            given = algorithm.get(key, words.get(views[key]))
            section = given if isinstance(given, dict) else {"recipe": given}
            algorithm[key] = section | {own: [round(v / _LARGEST, 9) for v in value]}


_KNOWN = frozenset(
    "model data_preprocessor train_dataloader optim_wrapper param_scheduler train_cfg randomness default_hooks "
    "custom_hooks auto_scale_lr load_from resume find_unused_parameters data optimizer_config lr_config runner "
    "total_epochs fp16 checkpoint_config log_config resume_from seed deterministic".split()
)


def _set_variables_aside(source: Source, config: dict[str, Any]) -> None:
    """A file's own variables, which do something only where they are used; one that is used nowhere is reported."""
    used: list[Any] = []

    def collect(value: Any) -> None:
        used.append(value)
        for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            collect(inner)

    for key in (key for key in config if key in _KNOWN):
        collect(copied(config[key]))
    for key in (key for key in config if key not in _KNOWN):
        value = source.get((key,))
        if isinstance(value, (dict, list)) and value and _used(copied(config[key]), used):
            source.take((key,))
            source.report.aside.append(f"{key}: a variable, as where it is used")
        elif not isinstance(value, (dict, list)) and value is not None:
            source.put_aside((key,))


def _used(variable: Any, values: list[Any]) -> bool:
    """Whether a variable is one of the values, or a dict that has gone into one of them."""
    if variable in values:
        return True
    dicts = [value for value in values if isinstance(value, dict)] if isinstance(variable, dict) else []
    return any({key: one[key] for key in variable if key in one} == variable for one in dicts)
