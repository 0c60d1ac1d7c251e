"""ResNets. Ours is `models.backbones.resnet.ResNet`, which has torchvision's names under `body`."""

from dataclasses import replace

from .names import Layout

_STAGES = ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4")
_NEEDS = ("layer1.0.conv1", "layer4.0.conv1")

TORCHVISION = Layout(
    "torchvision",
    "resnet",
    tuple((name, f"body.{name}") for name in _STAGES),
    mark="bn1.weight",
    needs=_NEEDS,
    classifiers=("fc", "head.fc"),
    rebuilt=tuple(f"sobel.{i}.{kind}" for i in (0, 1) for kind in ("weight", "bias")),
)
OPENMMLAB = replace(TORCHVISION, name="openmmlab", classifiers=("head.fc",))  # the same names, of the backbone
SEQUENTIAL = Layout(  # nn.Sequential(*list(resnet.children())[:-1]), as lightly's tutorials build backbones
    "sequential",
    "resnet",
    tuple((str(number), f"body.{name}") for number, name in zip((0, 1, 4, 5, 6, 7), _STAGES)),
    mark="4.0.conv1.weight",
    needs=("7.0.conv1", "0.weight"),
)
LAYOUTS = (TORCHVISION, OPENMMLAB, SEQUENTIAL)
