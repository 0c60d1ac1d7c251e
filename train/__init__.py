"""From batches to an encoder, and how good it is.

pretrain.py      the entry of torchrun: recipe -> run
settings.py      the recipe sections that belong to training: data, train, optim
config.py        YAML recipes -> checked dataclasses (recipe_yaml.py: YAML with positions)
loop.py          the loop
optim.py         parameter groups and optimizers          schedules.py   learning rates as arrays
checkpoint.py    atomic save, newest readable, resume     distributed.py  process group, launch facts
metrics.py       console, metrics.jsonl, loss curve
embed.py         features of a data set                   knn.py          weighted k-NN on them
"""
