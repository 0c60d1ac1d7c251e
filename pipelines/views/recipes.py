"""Views of published methods by name: ``view("moco_v2")``, ``view("byol.first")``, or all of a method's in `VIEWS`;
and their masks: ``mask("mae")``.

A recipe file says ``view: moco_v2`` or ``view: {recipe: moco_v2, size: 96}``. Where the published order of operations
differs in a way that pixels show, the entry says so: elsewhere flips, which commute with what is done to colours, and
switched-off operations are left out of account.
"""

from __future__ import annotations

import difflib
from dataclasses import replace

from ..spec import (
    BlockMask,
    CellMask,
    MaskSpec,
    RandAugment,
    RandomErasing,
    RandomMask,
    SharedMask,
    TargetBlocksMask,
    VariedMask,
    ViewSpec,
)

CIFAR_MEAN = (125.307 / 255, 122.961 / 255, 113.8575 / 255)
CIFAR_STD = (51.5865 / 255, 50.847 / 255, 51.255 / 255)
_HALF = (0.5, 0.5, 0.5)


def _jitter(chance: float, brightness: float, contrast: float, saturation: float, hue: float) -> dict:
    return dict(jitter=chance, brightness=brightness, contrast=contrast, saturation=saturation, hue=hue)


_WHOLE = (0.08, 1.0)
_CROP = ViewSpec(scale=_WHOLE)
_FEATURES = ViewSpec(crop="center", center_fraction=224 / 256, flip=0.0)
_BICUBIC = ViewSpec(interpolation="bicubic")  # area 0.2 to 1
_MOCO = ViewSpec(count=2, **_jitter(0.8, 0.4, 0.4, 0.4, 0.1), gray=0.2, blur=0.5)
_SIMCLR = ViewSpec(count=2, scale=_WHOLE, **_jitter(0.8, 0.8, 0.8, 0.8, 0.2), gray=0.2, blur=0.5)
_CLUSTER = ViewSpec(scale=_WHOLE, rotate=2.0, **_jitter(1.0, 0.4, 0.4, 1.0, 0.5), gray=0.2)
_GRAY_FIRST = ViewSpec(gray=0.2, gray_first=True, **_jitter(1.0, 0.4, 0.4, 0.4, 0.4))
_FIRST = ViewSpec("first", scale=_WHOLE, **_jitter(0.8, 0.4, 0.4, 0.2, 0.1), gray=0.2, blur=1.0)
_SECOND = replace(_FIRST, name="second", blur=0.1, solarize=0.2)
_BYOL = tuple(replace(v, interpolation="bicubic") for v in (_FIRST, _SECOND))
_SWAV = replace(_SIMCLR, name="large", scale=(0.14, 1.0))
_DINO = tuple(replace(v, scale=(0.4, 1.0)) for v in _BYOL)
_DINO_SMALL = replace(_DINO[0], name="small", count=8, size=96, scale=(0.05, 0.4), blur=0.5)
_LEJEPA = replace(_DINO[0], name="large", count=2, scale=(0.3, 1.0), blur=0.5, solarize=0.2)
_IBOT = tuple(replace(v, scale=(0.25, 1.0)) for v in _BYOL)
_IBOT_SMALL = replace(_IBOT[0], name="small", count=10, size=96, scale=(0.05, 0.25), blur=0.5)
_DINOV2 = tuple(replace(v, scale=(0.32, 1.0)) for v in _BYOL)
_DINOV2_SMALL = replace(_DINOV2[0], name="small", count=8, size=96, scale=(0.05, 0.32), blur=0.5)
_AS_RUN = (0.0, 0.9, 0.5)  # blur: the authors' code takes the chance for that of leaving it out
_BEIT = replace(_BICUBIC, scale=_WHOLE, **_jitter(1.0, 0.4, 0.4, 0.4, 0.0))
# DALL-E's encoder wants 0.8 v + 0.1 of values v in [0, 1], half as many pixels as the model
_DALLE = dict(name="target", draws="image", size=112, interpolation="lanczos", mean=(-0.125,) * 3, std=(1.25,) * 3)


def _cifar(view: ViewSpec, **change) -> ViewSpec:
    """At 32 px, without blur, as in SimCLR's appendix B.9, and bilinear."""
    own = dict(size=32, blur=0.0, interpolation="bilinear", mean=CIFAR_MEAN, std=CIFAR_STD)
    return replace(view, **{**own, **change})


VIEWS: dict[str, tuple[ViewSpec, ...]] = {
    # Two views alike. Version 1 goes grey before the jitter and does not antialias.
    "moco_v1": (replace(_GRAY_FIRST, count=2, gray_weights="mean", antialias=False),),
    "moco_v2": (_MOCO,),
    "densecl": (_MOCO,),
    "simsiam": (_MOCO,),
    "simclr": (_SIMCLR,),
    # Two views each with its own blur and solarisation.
    "byol": _BYOL,
    "barlow": _BYOL,
    "moco_v3_resnet": tuple(replace(v, scale=(0.2, 1.0)) for v in (_FIRST, _SECOND)),
    "moco_v3_vit": (_FIRST, _SECOND),
    # Crops of two sizes. DINO's are those of its authors' script.
    "swav_2x224_6x96": (_SWAV, replace(_SWAV, name="small", count=6, size=96, scale=(0.05, 0.14))),
    "dino_2x224_8x96": (*_DINO, _DINO_SMALL),
    # Views alike but for their size and scale. The short script of LeJEPA's authors has one kind, at 128 px.
    "lejepa_2x224_6x98": (_LEJEPA, replace(_LEJEPA, name="small", count=6, size=98, scale=(0.05, 0.3))),
    "lejepa_4x128": (
        replace(_SIMCLR, count=4, size=128, solarize=0.2),  # SimCLR's colours
    ),
    "ibot_2x224_10x96": (*_IBOT, _IBOT_SMALL),
    # DINOv2's and DINOv3's, as all released weights were trained, and as recipe and paper have it.
    "dinov2": tuple(replace(v, blur=chance) for v, chance in zip((*_DINOV2, _DINOV2_SMALL), _AS_RUN)),
    "dinov2_as_written": (*_DINOV2, _DINOV2_SMALL),
    # One view and a label: of the sample, its cluster, its rotation, its place.
    "npid": (_GRAY_FIRST,),
    "deepcluster": (_CLUSTER,),
    "odc": (_CLUSTER,),
    "rotation": (replace(_CROP, parts="rotations"),),
    "relative_loc": (
        ViewSpec(
            crop="window",
            resize=292,
            squash=True,
            antialias=False,
            size=255,
            flip=0.0,
            gray=0.66,
            gray_weights="mean",
            mean=(124 / 255, 117 / 255, 104 / 255),
            std=(59 / 255, 58 / 255, 58 / 255),
            parts="patches",
        ),
    ),
    # Masked images.
    "mae": (_BICUBIC,),
    "milan": (_BICUBIC,),
    "eva": (_BICUBIC,),
    "mixmim": (_BICUBIC,),
    "pixmim": (ViewSpec(crop="window", resize=224, padding=4),),
    "simmim": (ViewSpec(size=192, scale=(0.67, 1.0), antialias=False),),
    "simmim_vit": (ViewSpec(scale=(0.67, 1.0), antialias=False),),
    "maskfeat": (ViewSpec(scale=(0.5, 1.0), ratio=(0.75, 1.3333), interpolation="bicubic", antialias=False),),
    "distill": (replace(_BYOL[0], name="image", scale=(0.2, 1.0), blur=0.5),),
    "capi": (ViewSpec(scale=(0.6, 1.0), interpolation="bicubic"),),
    "ijepa": (ViewSpec(scale=(0.3, 1.0), flip=0.0),),
    # One crop at two sizes, for the model and for the tokenizer of its targets. BEiT's jitter is published as the
    # first step, so its contrast refers to the mean of the whole image; here to that of the crop.
    "beit": (_BEIT, replace(_BEIT, **_DALLE)),
    "beitv2": (
        replace(_BEIT, scale=(0.2, 1.0)),
        replace(_BEIT, scale=(0.2, 1.0), name="target", draws="image", mean=_HALF, std=_HALF),
    ),
    "cae": (replace(_BICUBIC, scale=_WHOLE), replace(_BICUBIC, scale=_WHOLE, **_DALLE)),
    # Evaluation. `knn` has no antialiasing, as the figures it is compared with.
    "linear_train": (_CROP,),
    # The probes of all stages; the published one adds AlexNet's lighting noise, which is no operation here.
    "linear_stages_train": (replace(_CROP, interpolation="bicubic", **_jitter(1.0, 0.4, 0.4, 0.4, 0.0)),),
    "eval": (_FEATURES,),
    "knn": (replace(_FEATURES, antialias=False),),
    "finetune_mae": (replace(_CROP, interpolation="bicubic", randaugment=RandAugment(), erasing=RandomErasing()),),
    # 32 px. No paper fixes DINO's small crops there: these are as large in proportion.
    "simclr_cifar": (_cifar(_SIMCLR, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1),),
    "byol_cifar": tuple(_cifar(v) for v in _BYOL),
    "moco_cifar": (_cifar(_MOCO),),
    "lejepa_cifar": (_cifar(_LEJEPA, name="image", count=4, scale=(0.2, 1.0)),),
    "distill_cifar": (_cifar(ViewSpec(scale=(0.2, 1.0))),),
    "capi_cifar": (_cifar(ViewSpec(scale=(0.6, 1.0))),),
    "ijepa_cifar": (_cifar(ViewSpec(scale=(0.3, 1.0), flip=0.0)),),
    "dinov2_cifar": (*(_cifar(v) for v in _DINOV2), _cifar(_DINOV2_SMALL, size=16, count=4)),
    "dino_cifar": (*(_cifar(v) for v in _DINO), _cifar(_DINO_SMALL, size=16)),
}

# What methods hide, by name: (pixels on the side of a patch, the mask at the published size).
MASKS: dict[str, tuple[int, MaskSpec]] = {
    "mae": (16, RandomMask()),
    "pixmim": (16, RandomMask()),
    "simmim": (4, CellMask()),
    "simmim_vit": (16, CellMask(grid=(14, 14), cell=2)),
    "maskfeat": (16, BlockMask(count=78, min_block=15)),
    "beit": (16, BlockMask()),
    "beitv2": (16, BlockMask(max_block=75)),
    "cae": (16, BlockMask()),
    "mixmim": (32, SharedMask()),
    "ibot": (16, VariedMask()),
    "ijepa": (16, TargetBlocksMask()),
}


def view(name: str) -> ViewSpec:
    """The one view of a method, or one of several as ``method.view``: "byol.first".

    Raises `ValueError` for other names.
    """
    names = {recipe: views[0] for recipe, views in VIEWS.items() if len(views) == 1}
    names |= {f"{recipe}.{v.name}": v for recipe, views in VIEWS.items() for v in views if len(views) > 1}
    if name in names:
        return names[name]
    members = [known for known in names if known.startswith(f"{name}.")]
    near = difflib.get_close_matches(name, names, 1)
    hint = f"it is one of {', '.join(members)}" if members else f"did you mean {near[0]}?" if near else "see VIEWS"
    raise ValueError(f"no view is named {name!r}; {hint}")


def mask(name: str, size: int = 224) -> MaskSpec:
    """The mask of a method for views of `size` pixels; what is hidden keeps its share of the patches.

    Raises `ValueError` for other names and for sizes that patches do not divide.
    """
    if name not in MASKS:
        near = difflib.get_close_matches(name, MASKS, 1)
        raise ValueError(f"no mask is named {name!r}; {f'did you mean {near[0]}?' if near else 'see MASKS'}")
    patch, spec = MASKS[name]
    if size % patch:
        raise ValueError(f"the mask {name!r} hides patches of {patch} px, which do not divide a view of {size}")
    side = size // patch
    share = side**2 / spec.patches
    count = {"count": round(spec.count * share)} if isinstance(spec, BlockMask) else {}
    kept = {"kept": round(spec.kept * share)} if isinstance(spec, TargetBlocksMask) else {}
    return replace(spec, grid=(side, side), **count, **kept)
