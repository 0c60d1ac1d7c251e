"""``headrace pretrain``, each step's samples written down: what `mixture.py` runs as child processes.

A line of ``batches-RANK.jsonl`` in the current folder: [step, [[id, pass, digest of views and mask], ...]].
"""

import hashlib
import json
import os
import sys
from dataclasses import fields

import numpy as np

from headrace.errors import run_command
from headrace.train import pretrain
from headrace.train.engine.step import Stepper


def record(batch) -> list[list]:
    rows = []
    masks = [] if batch.mask is None else [getattr(batch.mask, f.name) for f in fields(batch.mask)]
    for row, (index, number) in enumerate(zip(batch.ids.tolist(), batch.passes.tolist())):
        seen = [view[:, row] for view in batch.views.values()] + [mask[row] for mask in masks if mask is not None]
        digest = hashlib.sha256(b"".join(np.ascontiguousarray(x).tobytes() for x in seen)).hexdigest()[:16]
        rows.append([index, number, digest])
    return rows


if __name__ == "__main__":
    true_step, rank = Stepper.__call__, os.environ["RANK"]

    def step(self, batch, progress):
        with open(f"batches-{rank}.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps([progress.step, record(batch)]) + "\n")
        return true_step(self, batch, progress)

    Stepper.__call__ = step
    sys.exit(run_command(lambda: pretrain.main(sys.argv[1:])))
