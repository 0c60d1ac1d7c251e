"""Foreign checkpoints -> our encoders, and back."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch

from ...errors import UserError
from ...models.algorithms.classifier import Classifier
from ...models.weights import adapt
from ...pipelines.spec import ViewSpec
from .names import Layout, Names, unwrapped
from .read import AVERAGE, TRAINED
from .recognise import recognise
from .shapes import State, Wishes, shape_of

_FLAT = ("cls_token", "positions")  # of CLIP
# what pre-training or a classifier has besides its encoder
_TRAINING = re.compile(
    r"(^|\.)(mask_token|decoder\w*|head\w*|neck|fc|projector\w*|projection_\w+|predictor|prototypes|lm_head|pooler"
    r"|cls_pt_layers|classifier|pre_logits|norm|fc_norm|k_bias)(\.|$)"
)
# a norm of the pooled tokens, by layout of plain transformers
_POOLED = {"timm": "fc_norm.", "dinov2": "fc_norm.", "beit": "fc_norm.", "openmmlab": "ln2."}
_POOLED |= {"hf_beit": "pooler.layernorm.", "hf4_beit": "pooler.layernorm."}
# mean and deviation of images
NORMALIZATIONS = {
    "imagenet": (ViewSpec().mean, ViewSpec().std),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
}


# what a report says of a second set of the same weights in the file, by its names' beginning
_BESIDE = {
    AVERAGE: "of the weights, also in the file; --teacher takes it",
    TRAINED: "of the weights, by MMEngine's EMAHook, which keeps those without averaging beside it",
}


@dataclass
class Imported:
    """An encoder and where its tensors came from."""

    layout: Layout
    prefix: str  # of the encoder's names in the checkpoint
    classifier: Classifier | None = None  # the encoder, and a linear layer
    scores: bool = False  # whether that layer came from the checkpoint
    matched: list[str] = field(default_factory=list)  # names that are ours already
    renamed: dict[str, str] = field(default_factory=dict)  # theirs -> ours
    rebuilt: list[str] = field(default_factory=list)  # theirs, which follow from the configuration
    resized: list[str] = field(default_factory=list)  # ours
    missing: list[str] = field(default_factory=list)  # ours that may be absent; they stay at their initial values
    left_over: list[str] = field(default_factory=list)  # theirs, of no encoder

    @property
    def family(self) -> str:
        return f"{self.layout.name}-{self.layout.kind}"

    def report(self) -> str:
        """A few lines for people."""
        config = self.classifier.config
        under = f", under {self.prefix}" if self.prefix else ""
        lines = [f"recognised  {self.family}{under}", f"encoder     {config.backbone}, {config.view.size} px"]
        shown = {
            "matched": self.matched,
            "renamed": [f"{theirs} -> {ours}" for theirs, ours in self.renamed.items()],
            "rebuilt": self.rebuilt,
            "resized": self.resized,
            "missing": self.missing,
            "left over": self.left_over,
        }
        lines += [some(what, names) for what, names in shown.items()]
        lines.append("shapes      all fit")
        lines.append(f"classifier  {f'{config.classes} classes' if self.scores else 'none'}")
        for start, said in _BESIDE.items():
            if not self.prefix.startswith(start) and any(name.startswith(start) for name in self.left_over):
                lines.append(f"average     {said}")
        return "\n".join(lines)


def some(what: str, names: list[str]) -> str:
    """A line of a report: how many, and the first of them."""
    few = f"  ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})" if names else ""
    return f"{what:<11} {len(names)}{few}"


@dataclass(frozen=True)
class Options:
    """What the user may say about a checkpoint."""

    family: str | None = None  # "openmmlab", or "openmmlab-swin", in place of all that are known
    teacher: bool = False  # the network that follows the trained one
    wishes: Wishes = Wishes()
    size: int | None = None  # side of images in pixels; tables are resized for it
    windows: tuple[int, ...] | None = None  # of Swin and MixMIM, likewise
    block_tables: bool = False  # each block its own relative table, where all share one
    normalize: str | None = None  # one of `NORMALIZATIONS`


def convert(state: State, options: Options | None = None) -> Imported:
    """The encoder of a checkpoint, as part of a classifier.

    Raises `UserError` where no encoder is recognised, where one is not there as a whole, and where it has parts that
    ours do not.
    """
    options, state = options or Options(), unwrapped(state)
    result = Imported(*recognise(state, options.family, options.teacher))
    with one_line(result.family):
        _convert(state, options, result)
    return result


@contextmanager
def one_line(family: str) -> Iterator[None]:
    """Whatever tensors of unforeseen shapes lead to, as a `UserError`."""
    try:
        yield
    except (RuntimeError, ValueError, IndexError, TypeError, ZeroDivisionError) as fault:
        raise UserError(f"{family}: {str(fault).partition(chr(10))[0]}") from None


def _convert(state: State, options: Options, result: Imported) -> None:
    layout, prefix = result.layout, result.prefix
    found = encoder_tensors(state, result)
    pooled = layout.kind == "vit" and any(n.startswith(prefix + _POOLED.get(layout.name, "\0")) for n in state)
    config, size = shape_of(layout.kind, found, options.wishes, pooled_norm=pooled, implied=dict(layout.implies))
    if options.windows is not None:
        config = _with_windows(config, options.windows)
    if options.block_tables and "relative_bias.table" in found:
        config = replace(config, relative_bias="block")
    mean, std = NORMALIZATIONS[options.normalize or _normalization(layout, config)]
    view = ViewSpec(size=options.size or size, interpolation="bicubic", mean=mean, std=std)
    head = _head(state, layout, prefix)
    classes = 1000 if head is None else len(head["1.weight"])
    given = Classifier.Config(
        view=view, backbone=config, classes=classes, head_norm=head is not None and "0.running_mean" in head
    )
    with torch.device("meta"):  # no memory is taken for what does not fit
        fitted = _fitted(result, found, Classifier(given))
    result.classifier = Classifier(given).eval()
    result.classifier.backbone.load_state_dict(fitted, strict=False)
    result.scores = head is not None and head["1.weight"].shape[1] == result.classifier.backbone.features
    if result.scores:
        result.classifier.head.load_state_dict(head, strict=False)
        taken = {id(tensor) for tensor in head.values()}
        result.left_over = [name for name in result.left_over if id(state[name]) not in taken]


def _normalization(layout: Layout, config: object) -> str:
    if getattr(config, "pre_norm", False):
        return "clip"
    beit = layout.name.endswith("beit") and config.relative_bias is not None  # whose authors centre images at 0
    return "half" if beit else "imagenet"


def encoder_tensors(state: State, result: Imported) -> State:
    """The encoder's tensors under our names and with our values; fills the lists of the report.

    Raises `UserError` where the encoder has tensors that ours has no place for.
    """
    layout, prefix = result.layout, result.prefix
    names, outside = layout.names, Names(layout.outside)
    pieces: dict[str, dict[int, torch.Tensor]] = {}
    parts: dict[str, int] = {}
    for name, tensor in state.items():
        inner = name[len(prefix) :] if name.startswith(prefix) else None
        place = outside.ours(name) if inner is None else names.ours(inner)
        if inner is not None and layout.rebuilt and inner.endswith(layout.rebuilt):
            result.rebuilt.append(name)
            if inner.endswith("periods"):
                _check_periods(name, tensor)
        elif place is None:
            result.left_over.append(name)
        else:
            pieces.setdefault(place.name, {})[place.part], parts[place.name] = tensor, place.parts
            if place.name == name:
                result.matched.append(name)
            else:
                result.renamed[name] = place.name
    _refuse_unknown(result)
    found = {}
    for name, own in pieces.items():
        if len(own) != parts[name]:
            raise UserError(f"{name}: {len(own)} of the {parts[name]} tensors that it is joined from are there")
        found[name] = own[0] if parts[name] == 1 else torch.cat([own[i] for i in sorted(own)])
    _unmask_keys(found)
    if layout.flat:
        found |= {name: found[name].reshape(1, -1, found[name].shape[-1]) for name in _FLAT if name in found}
    positions = found.get("positions")
    if layout.class_row and positions is not None and math.isqrt(positions.shape[1]) ** 2 != positions.shape[1]:
        # ours have no row for the class token: it is part of the class token
        found["cls_token"], found["positions"] = found["cls_token"] + positions[:, :1], positions[:, 1:]
    if layout.corners:
        for name in [name for name in found if "merges." in name]:
            found[name] = found[name].unflatten(-1, (-1, 4))[..., layout.corners].transpose(-1, -2).flatten(-2)
    return found


def _unmask_keys(found: State) -> None:
    """DINOv3's biases of queries, keys and values, of which a mask hides those of the keys -> those of the others."""
    for name in [name for name in found if name.endswith("qkv.bias_mask")]:
        del found[name]
        block = name.removesuffix("qkv.bias_mask")
        found[f"{block}q_bias"], _, found[f"{block}v_bias"] = found.pop(f"{block}qkv.bias").chunk(3)


def _check_periods(name: str, periods: torch.Tensor) -> None:
    ours = 100.0 ** (torch.arange(len(periods)) / len(periods))
    if not torch.allclose(periods.float(), ours, rtol=0.01):  # bfloat16 is as exact as that
        raise UserError(f"{name}: not the periods of DINOv3, 1 to 100; what the encoder computes would change")


def _refuse_unknown(result: Imported) -> None:
    """A tensor of the encoder that ours has no place for would change what it computes."""
    prefix = result.prefix
    modules = {name[len(prefix) :].split(".")[0] for name in result.renamed}  # those of the encoder
    special = ("register_tokens", "reg_token", "dist_token", "norm_pre", "storage_tokens")
    unknown = [
        name
        for name in result.left_over
        if name.startswith(prefix)
        and (name[len(prefix) :].split(".")[0] in modules or name[len(prefix) :].startswith(special))
        and not _TRAINING.search(name[len(prefix) :])
    ]
    if unknown:
        raise UserError(
            f"{result.family}: {len(unknown)} tensors of the encoder have no counterpart here "
            f"({', '.join(unknown[:3])}); what it computes would change"
        )


def _fitted(result: Imported, found: State, classifier: Classifier) -> State:
    """What the encoder loads. Raises `UserError` where that is not all, or has another shape."""
    own = classifier.backbone.state_dict()
    fitted = adapt(found, classifier.backbone)
    result.resized = [n for n, tensor in fitted.items() if n not in found or tensor.shape != found[n].shape]
    # counters of batches are not always written, and pre-training may do without a last norm (HiViT, BEiT v2)
    optional = [name for name in own if name.startswith("norm.") or name.endswith("num_batches_tracked")]
    missing = [name for name in own if name not in fitted]
    result.missing = [name for name in missing if name in optional]
    wrong = [f"no {name}" for name in missing if name not in optional]
    wrong += [
        f"{name} is {tuple(fitted[name].shape)}, not {tuple(own[name].shape)}"
        for name in own
        if name in fitted and fitted[name].shape != own[name].shape
    ]
    wrong += [f"{name} has no place" for name in fitted if name not in own]
    if wrong:
        more = f"; and {len(wrong) - 4} more" if len(wrong) > 4 else ""
        backbone = classifier.config.backbone
        raise UserError(f"{result.family}: does not fit {backbone}: {'; '.join(wrong[:4])}{more}")
    return fitted


def _with_windows(config: object, windows: tuple[int, ...]) -> object:
    if not hasattr(config, "windows"):
        raise UserError("--windows: only Swin and MixMIM have windows")
    if len(windows) not in (1, 4):
        raise UserError(f"--windows: one for all stages, or four, not {len(windows)}")
    return replace(config, windows=windows if len(windows) == 4 else windows * 4)


def _head(state: State, layout: Layout, prefix: str) -> State | None:
    """A linear classifier on the encoder's features, with the batch normalisation before it of MAE's linear probe."""
    network = AVERAGE if prefix.startswith(AVERAGE) else ""
    if prefix.removeprefix(network) not in ("", "backbone.", "model.", "vit."):  # pre-training ends in other layers
        return None
    for name in (*layout.classifiers, "head.1"):
        for start in dict.fromkeys((network, prefix)):
            weight = state.get(f"{start}{name}.weight")
            if weight is None or weight.dim() != 2 or len(weight) < 2:
                continue
            head = {"1.weight": weight, "1.bias": state.get(f"{start}{name}.bias", weight.new_zeros(len(weight)))}
            for norm in (f"{start}head.0", "neck.bn"):
                if f"{norm}.running_mean" in state and f"{norm}.weight" not in state:
                    head |= {f"0.{key}": state[f"{norm}.{key}"] for key in ("running_mean", "running_var")}
            return head
    return None


def to_layout(state: State, layout: Layout, prefix: str = "") -> State:
    """Our encoder's tensors under the names of a layout: the inverse of `convert`.

    Raises `UserError` for tensors that the layout has no name for.
    """
    names, converted = layout.names, {}
    for name, tensor in state.items():
        theirs = names.theirs(name)
        if theirs is None:
            raise UserError(f"{layout.name}-{layout.kind} has no name for {name}")
        if name == "positions" and layout.class_row:
            tensor = torch.cat([torch.zeros_like(tensor[:, :1]), tensor], dim=1)
        if layout.flat and name in _FLAT:
            tensor = tensor[0] if name == "positions" else tensor[0, 0]
        if layout.corners and "merges." in name:
            tensor = tensor.unflatten(-1, (4, -1))[..., layout.corners, :].transpose(-1, -2).flatten(-2)
        pieces = (tensor,) if len(theirs) == 1 else tensor.chunk(len(theirs))
        for spelling, piece in zip(theirs, pieces, strict=True):
            converted[prefix + spelling] = piece.contiguous().clone()
    return converted
