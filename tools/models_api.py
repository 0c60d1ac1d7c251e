"""Models by name: `list_models`, `get_model`, and ``headrace models``, the table of them."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from ..errors import UserError
from ..models.algorithms.classifier import Classifier
from ..models.backbones import ResNet, ViT
from ..models.backbones.hivit import HiViT
from ..models.backbones.mixmim import MixMIMTransformer
from ..models.backbones.swin import Swin
from ..models.weights import adapt
from ..pipelines.spec import ViewSpec
from ..train.engine.checkpoint import checkpoints
from ..train.evaluation.embed_encoder import saved_algorithm
from .exchange.import_weights import import_checkpoint
from .flops import multiply_adds

_OWN = ViT.Config(positions="learned", pool="cls")
_BEIT = ViT.Config("vit_base", positions="none", relative_bias="block", qkv_bias="qv", layer_scale=0.1, norm="pooled")
_DEIT3 = replace(_OWN, layer_scale=1e-6)
_DINOV2 = replace(_OWN, patch_size=14, layer_scale=1e-5)
_REGISTERS = replace(_DINOV2, registers=4, antialias=True)
_GIANT = dict(width=1536, depth=40, heads=24, hidden=4096, mlp="swiglu")
_DINOV3 = replace(_OWN, positions="rotary", registers=4, layer_scale=1e-5, qkv_bias="qv", norm_eps=1e-5)
_CLIP = replace(_OWN, pre_norm=True, mlp="quick_gelu", norm_eps=1e-5)


@dataclass(frozen=True)
class Entry:
    """A named model; `published` is the accuracy of such a classifier on ImageNet-1k, not one of headrace's."""

    backbone: object  # a Config
    size: int = 224
    top1: float | None = None  # percent
    top5: float | None = None
    source: str = ""  # of which weights, and where it is published


def _vit(name: str, **options: object) -> ViT.Config:
    return ViT.Config(name, **options)


MODELS: dict[str, Entry] = {
    "vit-tiny": Entry(_vit("vit_tiny")),
    "vit-small": Entry(_vit("vit_small")),
    "vit-base": Entry(_vit("vit_base", norm="pooled"), 224, 83.664, 96.530, "MAE 1600 epochs, fine-tuned; 2111.06377"),
    "vit-large": Entry(
        _vit("vit_large", norm="pooled"), 224, 85.952, 97.570, "MAE 1600 epochs, fine-tuned; 2111.06377"
    ),
    "vit-huge": Entry(
        _vit("vit_huge", patch_size=14, norm="pooled"), 224, 86.928, 98.088, "MAE 1600 epochs, fine-tuned; 2111.06377"
    ),
    "deit3-small": Entry(replace(_DEIT3, name="vit_small")),
    "deit3-medium": Entry(replace(_DEIT3, name="vit_medium")),
    "deit3-base": Entry(replace(_DEIT3, name="vit_base")),
    "deit3-large": Entry(replace(_DEIT3, name="vit_large")),
    "deit3-huge": Entry(replace(_DEIT3, name="vit_huge", patch_size=14)),
    "dinov2-small": Entry(replace(_DINOV2, name="vit_small"), 518, 81.1, None, "DINOv2, linear at 224 px; 2304.07193"),
    "dinov2-base": Entry(replace(_DINOV2, name="vit_base"), 518, 84.5, None, "DINOv2, linear at 224 px; 2304.07193"),
    "dinov2-large": Entry(replace(_DINOV2, name="vit_large"), 518, 86.3, None, "DINOv2, linear at 224 px; 2304.07193"),
    "dinov2-giant": Entry(replace(_DINOV2, **_GIANT), 518, 86.5, None, "DINOv2, linear at 224 px; 2304.07193"),
    "dinov2-small-reg4": Entry(replace(_REGISTERS, name="vit_small"), 518),
    "dinov2-base-reg4": Entry(replace(_REGISTERS, name="vit_base"), 518),
    "dinov2-large-reg4": Entry(replace(_REGISTERS, name="vit_large"), 518),
    "dinov2-giant-reg4": Entry(replace(_REGISTERS, **_GIANT), 518),
    "dinov3-small": Entry(replace(_DINOV3, name="vit_small")),
    "dinov3-small-plus": Entry(replace(_DINOV3, name="vit_small", hidden=1536, mlp="swiglu")),
    "dinov3-base": Entry(replace(_DINOV3, name="vit_base")),
    "dinov3-large": Entry(replace(_DINOV3, name="vit_large")),
    "dinov3-huge-plus": Entry(replace(_DINOV3, name="vit_huge", heads=20, hidden=5120, mlp="swiglu")),
    "clip-base-p32": Entry(replace(_CLIP, name="vit_base", patch_size=32)),
    "clip-base-p16": Entry(replace(_CLIP, name="vit_base")),
    "clip-large-p14": Entry(replace(_CLIP, name="vit_large", patch_size=14)),
    "beit-base": Entry(_BEIT, 224, 83.1, None, "BEiT 300 epochs, fine-tuned; MMSelfSup 1.0"),
    "beitv2-base": Entry(_BEIT, 224, 85.0, None, "BEiT v2 300 epochs, fine-tuned; MMSelfSup 1.0"),
    "swin-base-w6-192": Entry(Swin.Config("swin_base", window=6), 192, 82.7, None, "SimMIM 100 epochs; MMSelfSup 1.0"),
    "swin-base": Entry(Swin.Config("swin_base"), 224, 83.8, None, "SimMIM 800 epochs, fine-tuned; MMSelfSup 1.0"),
    "swin-large-w14": Entry(
        Swin.Config("swin_large", windows=(14, 14, 14, 14)),
        224,
        84.8,
        None,
        "SimMIM 800 epochs, fine-tuned; MMSelfSup 1.0",
    ),
    "mixmim-base": Entry(
        MixMIMTransformer.Config("mixmim_base"), 224, 84.63, None, "MixMIM 300 epochs, fine-tuned; MMSelfSup 1.0"
    ),
    "mixmim-large": Entry(
        MixMIMTransformer.Config("mixmim_large"), 224, 85.9, None, "MixMIM 600 epochs, fine-tuned; 2205.13137"
    ),
    "mixmim-huge": Entry(MixMIMTransformer.Config("mixmim_huge")),
    "mixmim-base-384": Entry(
        MixMIMTransformer.Config("mixmim_base", windows=(16, 16, 24, 12)), 384, 86.3, None, "MixMIM; 2205.13137"
    ),
    "hivit-tiny": Entry(HiViT.Config("hivit_tiny", positions="learned", relative_bias=True)),
    "hivit-small": Entry(HiViT.Config("hivit_small", positions="learned", relative_bias=True)),
    "hivit-base": Entry(
        HiViT.Config("hivit_base", positions="learned", relative_bias=True),
        224,
        84.6,
        None,
        "MAE 1600 epochs, fine-tuned; the authors of 2205.14949",
    ),
    "hivit-large": Entry(HiViT.Config("hivit_large", positions="learned")),
    "resnet18": Entry(ResNet.Config("resnet18")),
    "resnet34": Entry(ResNet.Config("resnet34")),
    "resnet50": Entry(ResNet.Config("resnet50"), 224, 74.4, None, "MoCo v3 800 epochs, linear; MMSelfSup 1.0"),
    "resnet101": Entry(ResNet.Config("resnet101")),
    "resnet152": Entry(ResNet.Config("resnet152")),
}


class Model(nn.Module):
    """An encoder, and a linear layer on its features if asked for. Images are (B, 3, S, S), normalised as `view` says.

    `model(images)`: scores (B, classes), or without a head the features. `model.extract_feat(images)`: features (B, D).
    """

    def __init__(self, classifier: Classifier, head: bool) -> None:
        super().__init__()
        encoder, self.head = classifier.scorer
        self.encoder = encoder
        if not head:
            self.head = nn.Identity()
        self.view: ViewSpec = classifier.config.view

    def extract_feat(self, images: torch.Tensor) -> torch.Tensor:
        return self.encoder(images)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(images))


def list_models(word: str = "") -> list[str]:
    """The names that `get_model` knows, or those with `word` in them."""
    return [name for name in MODELS if word in name]


def get_model(
    name: str | None = None,
    *,
    checkpoint: str | Path | None = None,
    head: str | None = None,
    classes: int = 1000,
    size: int | None = None,
) -> Model:
    """A model in evaluation mode on the CPU.

    Args:
        name: one of `list_models()`; None: what the checkpoint is of.
        checkpoint: a run directory, a .pt checkpoint or encoder.safetensors of headrace, or a file of another code
            base (see ``headrace import``); None: random weights.
        head: "linear", a layer to `classes` scores, taken from the checkpoint where that has one; None: features.
        classes: of a head that no checkpoint has.
        size: side of the images in pixels; tables of positions are resized for it. None: the named size.

    Raises:
        UserError: an unknown name, a checkpoint that cannot be read or is of another model.
    """
    if head not in (None, "linear"):
        raise UserError(f'head: "linear" or None, not {head!r}')
    if name is None and checkpoint is None:
        raise UserError("get_model: give a name (headrace.list_models()), a checkpoint, or both")
    if name is not None and name not in MODELS:
        near = difflib.get_close_matches(name, MODELS, n=1)
        raise UserError(f"no model {name!r}; " + (f"did you mean {near[0]}?" if near else "see headrace.list_models()"))
    if checkpoint is None:
        return Model(_random(MODELS[name], classes, size), head is not None).eval()
    found, scores = read_classifier(checkpoint, classes)
    if name is None and size in (None, found.config.view.size):
        return Model(found, head is not None).eval()
    backbone = found.config.backbone if name is None else MODELS[name].backbone
    entry = Entry(backbone, size or (found.config.view.size if name is None else MODELS[name].size))
    model = _random(entry, found.config.classes, size, view=found.config.view, head_norm=found.config.head_norm)
    _take_over(model, found, name, checkpoint)
    return Model(model, head is not None).eval()


def read_classifier(checkpoint: str | Path, classes: int = 1000) -> tuple[Classifier, bool]:
    """A checkpoint of any kind as a classifier, and whether its linear layer was trained."""
    path = Path(checkpoint)
    own = path.is_dir() or (path.suffix == ".pt" and path.name.startswith("step-")) or _described(path)
    if not own:
        imported = import_checkpoint(path)
        return imported.classifier, imported.scores
    algorithm = saved_algorithm(path).eval()
    trained = isinstance(algorithm, Classifier) and (path.suffix == ".pt" or bool(checkpoints(path)))
    if trained:
        return algorithm, True
    view = replace(algorithm.inputs().views[0], count=1, parts=None, name="image")
    config = Classifier.Config(view=view, backbone=algorithm.config.backbone, classes=classes)
    classifier = Classifier(config).eval()
    classifier.backbone.load_state_dict(algorithm.encoder.state_dict())
    return classifier, False


def _described(path: Path) -> bool:
    """Whether a .safetensors file has a configuration of headrace in it."""
    if path.suffix != ".safetensors" or not path.is_file():
        return False
    try:
        with safe_open(path, "pt") as file:
            return "config" in (file.metadata() or {})
    except SafetensorError:
        return False


def _random(entry: Entry, classes: int, size: int | None, **options: object) -> Classifier:
    view = options.pop("view", None) or ViewSpec(interpolation="bicubic")
    view = replace(view, size=size or entry.size)
    return Classifier(Classifier.Config(view=view, backbone=entry.backbone, classes=classes, **options))


def _take_over(model: Classifier, found: Classifier, name: str | None, checkpoint: str | Path) -> None:
    """The weights of `found`, with tables resized where `model` is for other images."""
    own = model.backbone.state_dict()
    state = adapt(found.backbone.state_dict(), model.backbone)
    if state.keys() != own.keys() or any(own[key].shape != state[key].shape for key in own):
        raise UserError(f"{checkpoint}: is not {name} but {found.config.backbone}; leave the name out")
    model.backbone.load_state_dict(state)
    model.head.load_state_dict(found.head.state_dict())


def count(module: nn.Module) -> int:
    """How many parameters there are, learning or not; buffers, such as fixed tables of positions, are none."""
    return sum(parameter.numel() for parameter in module.parameters())


def parameters(name: str, classes: int | None = 1000) -> int:
    """What `count` says of the model that `get_model` makes, with a linear layer unless `classes` is None."""
    model = random_model(name, classes or 2)
    return count(model if classes else model.encoder)


def random_model(name: str, classes: int = 1000) -> Model:
    """A named model with a linear layer, on the meta device."""
    with torch.device("meta"):
        return Model(_random(MODELS[name], classes, None), head=True)


def random_encoder(name: str) -> nn.Module:
    """The encoder of a named model on the meta device."""
    return random_model(name).encoder


def gflops(name: str) -> float:
    """Billions of multiply-adds of one image through the encoder; see `flops.multiply_adds`."""
    return multiply_adds(random_encoder(name), MODELS[name].size)[""] / 1e9
