"""One of several processes that evaluate: embed, knn, linear and finetune of the same encoder, one after another.

Usage: evaluation_worker.py <run directory> <labelled folder>; what they leave is in the current folder.
"""

import sys

from headrace.cli import dispatch

run, photos = sys.argv[1:]
common = ["--batch-size", "5", "--threads", "1", "--device", "cpu"]
sets = ["--train", photos, "--val", photos]
for command in (
    ["embed", run, photos, "--out", "embedded", *common],
    ["knn", run, *sets, "--k", "3", "7", *common],
    ["linear", run, *sets, "--epochs", "3", "--head-batch", "8", *common],
    ["linear", run, *sets, "--protocol", "auto", "--epochs", "2", "--head-batch", "8", "--device", "cpu"],
):
    assert dispatch(command) == 0
