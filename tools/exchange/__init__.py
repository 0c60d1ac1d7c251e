"""Weights and configurations of other libraries.

import_weights.py      foreign checkpoints in; weights/: how other code bases name and lay out weights, as data
export.py              encoders out; targets/: what they are called there; onnx_file.py: as a graph
import_config.py       OpenMMLab's configurations as recipes
static_config.py       reads them without running them
mmselfsup_config.py    says them in our words            mmselfsup_legacy.py    puts 0.x's in the words of 1.x
"""
