"""How a run goes.

loop.py           the loop                             step.py         one optimizer step, its guard and its parts
optim.py          parameter groups and optimizers      lars.py         LARS and LAMB
transforms.py     recomputed activations, compilation  sharding.py     FSDP2
checkpoint.py     atomic save, newest readable
distributed.py    process group, launch facts          signals.py      how a run is asked to stop
run_directory.py  one run at a time, its environment   interval.py     means between two logging steps, collapse
metrics.py        console, metrics.jsonl, loss curve   trackers.py     TensorBoard, Weights & Biases
profiler.py       a trace of some steps
"""
