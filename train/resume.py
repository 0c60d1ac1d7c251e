"""What a run continues from: whether a checkpoint is of this recipe and these images, and how far the run then is."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from torch import nn

import headrace

from ..errors import UserError
from ..models.algorithms import find_algorithm
from ..pipelines.order import Order
from ..pipelines.plan.mixture import MixedOrder
from ..pipelines.spec import Loader
from .engine import checkpoint
from .engine.metrics import renumber
from .engine.run_directory import ENCODER_FILE
from .engine.sharding import gathered, shared_model, shared_optimizer
from .engine.step import Stepper
from .ledger import frozen_state
from .recipe import config
from .recipe.recipe import Recipe
from .recipe.settings import DataSettings, Optim, TrainSettings

# what another start of a run may say anew; docs/reliability.md has the reasons
MAY_CHANGE = (
    *("train.epochs", "train.max_steps"),
    *("train.out", "train.resume", "train.accept_changes", "train.replan"),
    *("train.save_every", "train.keep", "train.keep_every", "train.log_every", "train.knn_every", "train.trackers"),
    *("train.profile", "train.timeout", "train.max_skipped", "train.ledger", "train.guard"),
    *("train.device", "train.deterministic", "train.checkpointing", "train.compile"),
    *("train.shard", "train.unused_parameters"),
    *("data.train", "data.val", "data.loader", "data.pixels", "data.threads", "data.hw_decoder_load", "data.max_bad"),
)
_PLACES = re.compile(r"kernels|data\.train\.[^.]+\.(source|table)$")  # what is there counts, see `identity`
_PLAN = ("data.train", "data.mix")  # how keys of a data plan begin
_SHOWN = 6  # differences in a message
_ASIDE = "replaced-"  # how names of what a run has gone back behind begin
_KEYS = ("optimizer", "scaler", "step", "loader")


@dataclass
class Resumed:
    """A checkpoint that a run continues from."""

    path: Path
    state: dict
    step: int  # finished steps, counted as this recipe counts them
    count: Callable[[int], int]  # from steps as they were counted then
    changed: bool = False  # whether something is accepted to be another now
    replanned: bool = False  # whether its sets are read in another way from here on
    goes_back: bool = False  # whether train.out holds later steps than this one, or steps of another size
    # of several sets: since which step they are read as they are, and how many images each had given by then
    begin: tuple[int, dict[str, int]] = (0, {})
    notes: list[str] = field(default_factory=list)  # what its user should know


def find_resume(recipe: Recipe, data: dict, order: Order | MixedOrder) -> Resumed | None:
    """The checkpoint to continue from, as `train.resume` says; `data` is the `identity` of the images.

    Raises `UserError` where a run would go on as another one: see `changes`.
    """
    settings, out = recipe.train, recipe.out
    own = checkpoint.checkpoints(out)
    if settings.resume == "never" and own:
        raise UserError(f"{out}: holds the checkpoints of a run; choose another train.out, or train.resume=auto")
    if (out / ENCODER_FILE).exists() and not own:
        raise UserError(f"{out}: holds an encoder without the checkpoints of its run; choose another train.out")
    if settings.resume == "never":
        return None
    found = checkpoint.newest(out)
    if settings.resume != "auto":
        found = _named(settings.resume, out, found)
    if found is None:
        return None
    path, state = found
    checkpoint.check_own(state, path)
    if missing := [key for key in _KEYS if key not in state]:
        raise UserError(
            f"{path}: holds weights alone, no {missing[0]}, and nothing to continue from; choose another train.out or "
            "train.resume"
        )
    if any(state.get("data", {}).get(key) != data.get(key) for key in ("images", "names", "contents")):
        state.pop("ledger", None)  # its rows are about other images
    inside = path.resolve().parent == out.resolve()
    count = _counted_in(order, state)
    resumed = Resumed(path, state, count(state["step"]), count)
    differences, sections = changes(state, recipe, data)
    of_plan = [text for text in differences if text.startswith(_PLAN)]
    if differences and not (settings.accept_changes or settings.replan and of_plan == differences):
        key = "train.replan" if of_plan == differences and isinstance(order, MixedOrder) else "train.accept_changes"
        raise UserError(
            f"{path}: comes from {' and '.join(f'another {section}' for section in sections)} than this command's: "
            f"{_listed(differences)}; choose another train.out (--out), or {key}=true to continue with what has changed"
        )
    if plan := state.get("plan"):
        resumed.begin = (resumed.step, plan["given"]) if of_plan or resumed.step != state["step"] else plan["begin"]
    elif of_plan:
        resumed.begin = (resumed.step, {})
    resumed.replanned = bool(of_plan) or resumed.step != state["step"]
    if differences:
        resumed.changed = True
        resumed.notes.append(f"continues {path} with changes: {_listed(differences)}")
    if state["config"]["optim"]["name"] != recipe.optim.name:
        resumed.state = {**state, "optimizer": {"state": {}, "param_groups": []}, "parameters": []}
        resumed.notes.append(f"optim.name: {recipe.optim.name} begins without a memory of earlier steps")
    if "data" not in state:
        resumed.notes.append(
            f"{path}: an older checkpoint, which does not say which images it saw; they were not compared"
        )
    if resumed.step != state["step"]:
        resumed.notes.append(
            f"step {state['step']} counts as {resumed.step}: the run goes on at the same place of its epoch"
        )
    later = inside and any(checkpoint.step_of(other) > checkpoint.step_of(path) for other in own)
    resumed.goes_back = inside and (later and settings.resume != "auto" or resumed.step != state["step"])
    return resumed


def _named(name: str, out: Path, newest: tuple[Path, dict] | None) -> tuple[Path, dict]:
    """The checkpoint that `train.resume` names, or what the same command has made of it since."""
    path = Path(name).expanduser()
    if newest is None:
        return path, checkpoint.load(path)
    if newest[1].get("config", {}).get("train", {}).get("resume") == name:
        return newest
    if path.resolve().parent != out.resolve():
        raise UserError(
            f"{out}: holds the checkpoints of a run that did not begin with {path}; choose another train.out"
        )
    return path, checkpoint.load(path)


def changes(state: dict, recipe: Recipe, data: dict) -> tuple[list[str], list[str]]:
    """What is another now than when a checkpoint was written, as "key: then -> now", and the sections that it is in.

    All that `MAY_CHANGE` does not list counts, and of kernels nothing does. `data.train` counts by what is in it, as
    far as both know.
    """
    then, now = _completed(state["config"]), recipe.plain()
    old, new = (dict(_leaves(sections, "")) for sections in (then, now))
    keys = [key for key in dict.fromkeys([*new, *old]) if key not in MAY_CHANGE and not _PLACES.match(key)]
    keys = [key for key in keys if not _same(key, old.get(key), new.get(key))]
    keys.sort(key=lambda key: not key.endswith(".name"))  # what follows from a name comes after it
    found = [f"{key}: {_shown(old.get(key))} -> {_shown(new.get(key))}" for key in keys]
    sections = [f"{name} section" for name in now if any(key.startswith(f"{name}.") for key in keys)]
    known = state.get("data", {})
    if other := [key for key in data if key in known and known[key] != data[key]]:
        places = (sections["data"]["train"] for sections in (then, now))
        sets = [
            f"{place if isinstance(place, str) else 'images'} ({_counted(each)})"
            for place, each in zip(places, (known, data))
        ]
        if known["images"] == data["images"]:
            sets[1] = f"{sets[1][:-1]}, other {', '.join(other)})"
        found.insert(0, f"data.train: {' -> '.join(sets)}")
        sections.insert(0, "data set")
    return found, sections


def _completed(saved: dict) -> dict:
    """The sections of a checkpoint, with the defaults of what there has been since it was written."""
    kinds = {"data": DataSettings, "train": TrainSettings, "optim": Optim}
    complete = {}
    for name, section in saved.items():
        try:
            kind = find_algorithm(section["name"]).Config if name == "algorithm" else kinds[name]
            built = config.build(config.from_plain({name: section}, "checkpoint"), {name: kind})
            complete[name] = config.plain(built[name])
        except (UserError, KeyError):  # what is gone since stays as it was
            complete[name] = section
    return complete


def _leaves(value: object, key: str) -> Iterator[tuple[str, object]]:
    if isinstance(value, dict) and value:
        for name, item in value.items():
            yield from _leaves(item, f"{key}.{name}" if key else name)
    else:
        yield key, value


def _same(key: str, then: object, now: object) -> bool:
    if key == "train.precision" and "auto" in (then, now):  # then it is the device's, which may be another
        return True
    if key.endswith(".weights") and isinstance(then, str) and isinstance(now, str):
        names = Path(then).name, Path(now).name  # `embed_encoder.encoder_file` puts a hash of the contents into them
        return then == now or names[0] == names[1] and names[0].startswith("start-")
    return then == now


def _shown(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _counted(data: dict) -> str:
    classes = f"{data['classes']:,} classes" if data["classes"] else "no labels"
    return f"{data['images']:,} images, {classes}"


def _listed(differences: list[str]) -> str:
    more = f"; and {len(differences) - _SHOWN} more" if len(differences) > _SHOWN else ""
    return "; ".join(differences[:_SHOWN]) + more


def _counted_in(order: Order, state: dict) -> Callable[[int], int]:
    """From steps of the run that a checkpoint is of to steps of `order`: as many epochs, and of the last one the same
    share of its images. What lies between two steps is seen again: less than one batch."""
    if isinstance(order, MixedOrder) or "plan" in state:  # read without end: so many images are so many
        return lambda step: step * state["config"]["train"]["batch_size"] // order.global_batch
    then, samples = state["config"], state.get("data", {}).get("images", order.samples)
    old = Order(samples, then["train"]["batch_size"], last=then["data"].get("last_batch", order.last))

    def count(step: int) -> int:
        epoch, steps = divmod(step, old.steps_per_epoch)
        share = steps * old.global_batch * order.samples // (samples * order.global_batch)
        return epoch * order.steps_per_epoch + min(share, order.steps_per_epoch)

    return count


def saved_state(recipe: Recipe, data: dict, stepper: Stepper, loader: Loader, step: int) -> dict:
    """What a checkpoint holds. A collective where weights are shared out."""
    return {
        "model": gathered(stepper.algorithm.state_dict()),
        "optimizer": gathered(stepper.optimizer.state_dict()),
        "parameters": _names(stepper),
        "scaler": stepper.scaler.state_dict(),
        "step": step,
        "loader": loader.state_dict(),
        **_plan(getattr(loader, "order", None), step),
        **_said(recipe, data),
    }


def _plan(order: Order | MixedOrder | None, step: int) -> dict:
    """Of several sets: since when they are read as they are, and how many images each has given."""
    if not isinstance(order, MixedOrder):
        return {}
    first, counts = order.begin
    found = {"begin": (first, dict(counts)), "given": order.given(step)}
    if order.chosen_by is not None:
        found["frozen"] = frozen_state(order.chosen_by)
    return {"plan": found}


def _said(recipe: Recipe, data: dict) -> dict:
    return {"config": recipe.plain(), "data": data, "version": headrace.__version__}


def go_back(resumed: Resumed, recipe: Recipe, data: dict) -> None:
    """Makes `resumed` the newest checkpoint of train.out; later ones, and those of steps of another size, are set aside
    under other names. To be called by one process, before the first step."""
    out, state = recipe.out, {**resumed.state, **_said(recipe, data)}
    state |= {"step": resumed.step, "loader": {**state["loader"], "step": resumed.step}}
    own = checkpoint.checkpoints(out)
    path = checkpoint.save(out, resumed.step, state, keep=len(own) + 1)
    for other in own:
        if checkpoint.step_of(other) > resumed.step:
            other.rename(out / f"{_ASIDE}{other.name}")
    renumber(out, resumed.count)
    if (out / "wandb-id").exists():  # W&B counts steps upwards only
        (out / "wandb-id").rename(out / f"{_ASIDE}wandb-id")
    resumed.path = path


def restore(resumed: Resumed, stepper: Stepper, loader: Loader) -> None:
    """Puts a checkpoint into what takes the steps. Raises `UserError` for weights that do not fit."""
    restore_weights(resumed, stepper.algorithm)
    stepper.watch_buffers()
    _restore_optimizer(resumed, stepper)
    if stepper.scaler.is_enabled() and resumed.state["scaler"]:
        stepper.scaler.load_state_dict(resumed.state["scaler"])
    loader.load_state_dict({**resumed.state["loader"], "step": resumed.step})


def restore_weights(resumed: Resumed, algorithm: nn.Module) -> None:
    weights = shared_model(resumed.state["model"], algorithm)
    checkpoint.load_weights(algorithm, weights, resumed.path, "this recipe's; choose another train.out")


def _restore_optimizer(resumed: Resumed, stepper: Stepper) -> None:
    """The state of each parameter that has one, found by name; what groups are told is what the recipe says now."""
    optimizer, saved, names = stepper.optimizer, resumed.state["optimizer"], _names(stepper)
    own, old_names = optimizer.state_dict(), resumed.state.get("parameters")
    sizes = [[len(group["params"]) for group in each["param_groups"]] for each in (own, saved)]
    if old_names is None and sizes[0] != sizes[1]:
        raise UserError(
            f"{resumed.path}: an older checkpoint, whose optimizer has other groups of parameters without their names; "
            "choose another train.out"
        )
    places = {name: place for place, name in enumerate(old_names or names)}
    kept = {
        place: saved["state"][places[name]]
        for place, name in enumerate(names)
        if name in places and places[name] in saved["state"]
    }
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    groups = own["param_groups"]
    if sizes[0] == sizes[1]:  # an optimizer of one's own may keep a state of its groups, too
        groups = [{**old, **group} for old, group in zip(saved["param_groups"], groups)]
    optimizer.load_state_dict(shared_optimizer({"state": kept, "param_groups": groups}, parameters))


def _names(stepper: Stepper) -> list[str]:
    """Of the parameters, in the order in which the optimizer numbers them."""
    names = {parameter: name for name, parameter in stepper.algorithm.named_parameters()}
    return [names[parameter] for group in stepper.optimizer.param_groups for parameter in group["params"]]
