"""From batches to an encoder, and how good it is.

pretrain.py      the entry of torchrun: recipe -> run
recipe/          YAML -> checked dataclasses: what a run is
engine/          the loop, the step, checkpoints, processes: how it goes
evaluation/      features of an encoder, and what they are worth
dense/           detectors and segmenters on encoders

Who knows whom: recipe -> nobody; engine -> recipe; evaluation -> engine, recipe; dense -> all three. `pretrain.py` puts
them together; fine-tuning and dense training are runs of its making.
"""
