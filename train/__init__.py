"""From batches to an encoder, and how good it is.

pretrain.py      the entry of torchrun: recipe -> run
recipe.py        a recipe's sections, --smoke, `headrace recipes`
settings.py      the recipe sections that belong to training: data, train, optim
config.py        YAML recipes -> checked dataclasses (recipe_yaml.py: YAML with positions)
loop.py          the loop                             step.py         one optimizer step, its guard and its parts
optim.py         parameter groups and optimizers      lars.py         LARS and LAMB
schedules.py     rates and decays as arrays           transforms.py   recomputed activations, compilation
checkpoint.py    atomic save, newest readable, resume
distributed.py   process group, launch facts          signals.py      how a run is asked to stop
run_directory.py one run at a time, its environment   interval.py     means between two logging steps, collapse
metrics.py       console, metrics.jsonl, loss curve   trackers.py     TensorBoard, Weights & Biases
profiler.py      a trace of some steps                score.py        k-NN on the way
sweep.py         a module over a whole set            sharding.py     FSDP2
embed.py         features of a data set               embed_store.py  the same on disk
embed_encoder.py encoders by name                     evaluate.py     what the evaluation commands share
knn.py           weighted k-NN on features            svm.py          VOC 2007
linear.py        linear probes: linear_sweep.py many heads at once, linear_protocols.py as published
finetune.py      classifiers on pre-trained encoders       dense/          detectors and segmenters on them
"""
