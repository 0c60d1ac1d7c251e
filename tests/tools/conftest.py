"""Lets these tests import the helpers beside them."""

import importlib.util
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

if importlib.util.find_spec("mmpretrain"):
    # beside pycocotools and transformers 5 its multimodal models, which no test needs, fail to import
    from mmpretrain.utils import dependency

    dependency.WITH_MULTIMODAL = False
