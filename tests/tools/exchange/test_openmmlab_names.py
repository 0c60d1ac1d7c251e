"""docs/encoders.md says of every argument of MMPretrain's masked image models what it is here."""

import inspect
import re

import pytest

pytest.importorskip("mmpretrain", reason="needs the extra [parity]")

import mmpretrain.datasets.transforms  # noqa: E402, F401
import mmpretrain.models  # noqa: E402, F401
from mmpretrain.models.selfsup.milan import CLIPGenerator  # noqa: E402
from mmpretrain.registry import MODELS, TRANSFORMS  # noqa: E402

from headrace.train.recipe.config import RECIPES  # noqa: E402

TEXT = (RECIPES.parent / "docs" / "encoders.md").read_text()
NAMES = """
MAEViT MAEHiViT SimMIMSwinTransformer BEiTPretrainViT CAEPretrainViT MaskFeatViT MILANViT MixMIMPretrainTransformer
VisionTransformer DeiT3 HiViT SwinTransformer BEiTViT MixMIMTransformer
MAEPretrainDecoder MixMIMPretrainDecoder MILANPretrainDecoder SimMIMLinearDecoder BEiTV2Neck CAENeck LinearNeck
MAEPretrainHead MixMIMPretrainHead SimMIMHead BEiTV1Head BEiTV2Head CAEHead MIMHead
PixelReconstructionLoss CAELoss CosineSimilarityLoss HOGGenerator VQKD DALL-E CAE MixMIM
""".split()


@pytest.mark.parametrize("name", [*NAMES, "CLIPGenerator", "BEiTMaskGenerator", "SimMIMMaskGenerator"])
def test_every_argument_is_accounted_for(name):
    kind = CLIPGenerator if name == "CLIPGenerator" else MODELS.get(name) or TRANSFORMS.get(name)
    arguments = set(inspect.signature(kind).parameters) - {"args", "kwargs"}
    assert arguments and arguments <= set(re.findall(r"`(\w+)`", TEXT))
