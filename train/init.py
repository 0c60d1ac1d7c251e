"""``train.init``: weights that a run of any method begins with; ``train.guard``: whether it makes them worse."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ..errors import UserError
from ..models.algorithm import Algorithm
from ..models.backbones.low_rank import merged
from ..models.weights import adapt, fit_channels
from .engine import checkpoint
from .engine.run_directory import ENCODER_FILE
from .foreign.convert import convert

BEST_FILE = "best.pt"  # of a guarded run: the weights with the highest k-NN accuracy so far


@dataclass
class Found:
    """What `train.init` leads to."""

    name: str
    encoder: dict[str, Tensor]
    method: dict[str, Tensor] = field(default_factory=dict)  # all tensors of a run of the same method


def initialise(algorithm: Algorithm, given: str) -> str:
    """Puts the encoder of `given` into the student and into every copy of it; of a run of the same method also heads,
    centres and teachers, as far as their names and shapes are the same. Returns a report in one line.

    Positions, relative biases, patches of another size and images of other channels are fitted. Raises `UserError` for
    what cannot be read and for an encoder that is none of this kind.
    """
    found = _read(given, algorithm)
    places = encoder_places(algorithm)
    own = algorithm.encoder.state_dict()
    fitted = adapt(fit_patches(found.encoder, own), algorithm.encoder)
    _require_fit(found.name, fitted, own)
    changed = [name for name in own if name in found.encoder and found.encoder[name].shape != own[name].shape]
    state = algorithm.state_dict()
    kept = {f"{place}.{name}": fitted[name] for place in places for name in own}
    same = {n: v for n, v in found.method.items() if n in state and n not in kept and state[n].shape == v.shape}
    algorithm.load_state_dict({**state, **kept, **same})
    anew = [name for name in state if name not in kept and name not in same]
    parts = [f"train.init: {found.name}: {len(own)} tensors of the encoder into {', '.join(places)}"]
    if changed:
        parts.append(f"fitted to other sizes: {', '.join(changed)}")
    if same:
        parts.append(f"{len(same)} of the rest of the method")
    parts.append(f"{len(anew)} start anew" + (f", such as {', '.join(anew[:3])}" if anew else ""))
    return "; ".join(parts)


def encoder_places(algorithm: Algorithm) -> list[str]:
    """The names of the modules that are the encoder or a copy of it: the student's and momentum teachers'."""
    encoder = algorithm.encoder
    shapes = {name: value.shape for name, value in encoder.state_dict().items()}
    return [
        name
        for name, module in algorithm.named_modules()
        if name and type(module) is type(encoder) and shapes == {n: v.shape for n, v in module.state_dict().items()}
    ]


def fit_patches(found: dict[str, Tensor], own: dict[str, Tensor]) -> dict[str, Tensor]:
    """`found` with the patch projection (D, C, p, p) fitted to other channels and another patch size.

    Channels as `models.weights.fit_channels` says: what sees a grey image in one channel sees it in three. Patches are
    resized so that products with resized images stay as they are (the pseudo-inverse of FlexiViT, arXiv 2212.08013).
    """
    key = "patch_embed.weight"
    if key not in found or key not in own or found[key].shape == own[key].shape or found[key].dim() != 4:
        return found
    weight, shape = found[key].float(), own[key].shape
    if weight.shape[1] != shape[1]:
        weight = fit_channels(weight, shape[1])
    if weight.shape[2:] != shape[2:]:
        old, new = weight.shape[2], shape[2]
        basis = torch.eye(old**2).view(-1, 1, old, old)
        resize = F.interpolate(basis, (new, new), mode="bicubic", align_corners=False).flatten(1)  # (old^2, new^2)
        weight = (weight.flatten(2) @ torch.linalg.pinv(resize).T).unflatten(2, (new, new))
    return {**found, key: weight.to(found[key].dtype)}


def _require_fit(name: str, found: dict[str, Tensor], own: dict[str, Tensor]) -> None:
    shapes = [key for key in own.keys() & found.keys() if own[key].shape != found[key].shape]
    for problem, names in (
        ("lacks", own.keys() - found.keys()),
        ("has besides", found.keys() - own.keys()),
        ("has in another shape", shapes),
    ):
        if names:
            some = ", ".join(sorted(names)[:3])
            raise UserError(
                f"train.init: {name} {problem} {len(names)} of the encoder's tensors, such as {some}; give "
                "algorithm.backbone as that encoder has it"
            )


def _read(given: str, algorithm: Algorithm) -> Found:
    if given.startswith("timm:"):
        return Found(given, _of_timm(given.removeprefix("timm:"), algorithm.encoder))
    path = Path(given).expanduser()
    file = path if path.suffix == ".safetensors" else path / ENCODER_FILE
    if path.is_dir() and checkpoint.checkpoints(path) or path.suffix == ".pt":
        path, state = checkpoint.find(path)
        name = state["config"]["algorithm"]["name"]
        if name == algorithm.config.name:
            kept = checkpoint.build_algorithm(state["config"]["algorithm"], path)
            own = next((name for name, module in kept.named_modules() if module is kept.encoder), "")
            if not own:
                raise UserError(f"train.init: {path}: has no encoder that can be told from the rest")
            method = merged(state["model"])
            encoder = {n.removeprefix(f"{own}."): v for n, v in method.items() if n.startswith(f"{own}.")}
            return Found(str(path), encoder, method)
        return Found(str(path), checkpoint.algorithm_of(state, path).encoder.state_dict())
    if not file.is_file():
        raise UserError(
            f"train.init: {given}: no run, checkpoint, {ENCODER_FILE} or timm:NAME; of a file of another library "
            "headrace import makes one first"
        )
    try:
        return Found(str(file), load_file(file))
    except (OSError, SafetensorError) as fault:
        raise UserError(f"train.init: {file}: not a readable .safetensors file ({fault})") from None


def _of_timm(name: str, encoder: nn.Module) -> dict[str, Tensor]:
    """The published weights of a timm model, in the words of `encoder`."""
    try:
        import timm
    except ImportError:
        raise UserError(f"train.init: timm:{name} needs the timm package; pip install timm") from None
    if name.partition(".")[0] not in timm.list_models():
        raise UserError(f"train.init: timm has no model {name!r}; see timm.list_models()")
    try:
        model = timm.create_model(name, pretrained=True, num_classes=0)
    except Exception as fault:  # of hubs, networks and files there are dozens of kinds
        reason = " ".join(str(fault).split())[:200]
        raise UserError(f"train.init: timm:{name} has no weights that can be had here ({reason})") from None
    state = model.state_dict()
    if hasattr(encoder, "body"):  # timm's own, under its own names
        return {f"body.{key}": value for key, value in state.items()}
    try:
        return convert(state).classifier.backbone.state_dict()
    except UserError as fault:
        raise UserError(f"train.init: timm:{name}: {fault}") from None


class Guard:
    """Watches the k-NN accuracy of a run: keeps the best weights as best.pt, and ends the run when it has fallen.

    Called as what it watches. `start` is what it was before the first step, which a resumed run (`resumed`) reads in
    best.pt; `drop` how much less is let pass. `keep` gives a checkpoint's weights and recipe, or {} on all processes
    but the first.
    """

    def __init__(
        self,
        score: Callable[[], dict[str, float]],
        drop: float,
        keep: Callable[[], dict],
        out: Path,
        resumed: bool = False,
    ) -> None:
        self._score, self._drop, self._keep, self._path = score, drop, keep, out / BEST_FILE
        self.start, self._best = None, -math.inf
        if resumed and self._path.exists():
            self.start, self._best = checkpoint.load(self._path)["guard"]
        else:
            self._look()

    def _look(self) -> dict[str, float]:
        metrics = self._score()
        value = metrics["knn"]
        self.start = value if self.start is None else self.start
        if value > self._best:
            self._best, state = value, self._keep()
            if state:
                temporary = self._path.with_suffix(".tmp")
                torch.save({**state, "guard": [self.start, self._best]}, temporary)
                temporary.replace(self._path)
        return metrics

    def __call__(self) -> dict[str, float]:
        metrics = self._look()
        if metrics["knn"] < self.start - self._drop:
            raise UserError(
                f"train.guard: k-NN accuracy has fallen from {self.start:.4f} at the start to {metrics['knn']:.4f}, by "
                f"more than {self._drop:g}; the run stops, and its best weights ({self._best:.4f}) are {self._path}; "
                "lower optim.lr, or hold the encoder longer (optim.frozen)"
            )
        return metrics
