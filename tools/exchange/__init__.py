"""Weights and configurations of other libraries.

import_weights.py      foreign checkpoints in, as train/foreign/ reads them
export.py              encoders out; targets/: what they are called there; onnx_file.py: as a graph
import_config.py       OpenMMLab's configurations as recipes
static_config.py       reads them without running them
config_source.py       what was taken from one, and the report of all the rest
mmselfsup_config.py    says them in our words            mmselfsup_legacy.py       puts 0.x's in the words of 1.x
mmselfsup_methods.py   what of a method arrives where    mmselfsup_same.py         and what is the same in any case
mmselfsup_runs.py      loaders, optimizers, hooks        mmselfsup_groups.py       rules for some parameters
                                                         mmselfsup_backbones.py    encoders
"""
