"""What headrace costs, and how it compares: a command each, ``python -m headrace.benchmarks.NAME [--help]``.

In a checkout where headrace is installed, ``python -m benchmarks.NAME`` is the same.

    loaders.py     images per second of our loaders and of others', beside ceilings     jobs.py    one job of it
                   peers/ has a function for each of the others
    pixels.py      views from pixels beside shards and from JPEGs, beside another build
                   pixels_worker.py is a process of it
    pixels_limited.py  pixels of more bytes than memory, in a process that may hold few
    steps.py       whole training steps: images/s, waiting for data, memory, share of the hardware's peak
    race.py        whole training steps beside those of other systems, which are in racers/
    mixture.py     several sets in one order: its cost, and runs that are killed (recorded.py: its child processes)
    scaling.py     1..n processes, 1..n threads, 10^3..10^9 samples
    speedrun.py    from nothing to k-NN and linear accuracy on CIFAR-10 in ten minutes
    accuracy.py, demo.py    what methods are worth on CIFAR-10; the demo, timed
    contenders.py  methods at equal CPU time, and what meters without labels are worth
                   contender_tables.py has the tables of these
    self_distillation.py    DINO to DINOv3 in equal steps, and one of them continued on other images
    gram.py        whether maps of patches that have decayed recover with Gram anchoring
    patch_head.py  memory of the loss of masked patches beside all logits at once
    evaluation.py  k-NN at the scale of ImageNet, the fast linear sweep against a published protocol
    kernels.py     every operator beside its rivals
    host.py        what calls of operators cost the host, beside another build; host_worker.py is a process of it
    augment_gpu.py, loaders_gpu.py    augmentation on a GPU, and loaders for one
    overhead.py    what the loop costs beside the model
    shard.py       how fast a folder becomes tars
    remote.py      shards behind an address beside the same on a disk
    visibility.py  which patches I-JEPA's masks let an encoder see, as a picture
    know.py        which near duplicates are found, and how fast    measuring.py   what measuring costs
    curate.py      what a balanced choice of an uneven set is worth
    faults.py      what becomes of a run that something happens to    processes.py, preload.py    runs as processes
    gpu.py         all that needs a GPU, in ten minutes, most valuable first

    gate.py        whether our loader has become slower
    report.py      the tables and plots of README.md and docs/benchmarks.md     ledger.py    the tables

    record.py      the ledger results/*.jsonl: every figure with its spread, hardware, versions, commit and settings

Commands that measure take ``--out``, the folder of the ledger.
"""

import importlib.util
import sys

if importlib.util.find_spec("headrace") is None:
    print("benchmarks: headrace is not installed here; pip install -e . in this folder", file=sys.stderr)
    sys.exit(2)
