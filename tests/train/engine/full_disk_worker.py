"""A run on a disk that is full for a while: ``full_disk_worker.py <from> <to> <arguments of headrace pretrain>``.

`from` is the number of a step, "start" or "encoder"; `to` the number of a step, or "end". A limit of 0 bytes for files
is what a full disk is: nothing that is there is lost, nothing grows, the log of this process among it.
"""

import resource
import signal
import sys
import tempfile

from headrace.train import pretrain
from headrace.train.engine.step import Stepper

tempfile.gettempdir()  # torch wants one that can be written to; it is the disk of the run that is full
first, last, *arguments = sys.argv[1:]
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)


def full(now: bool) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (0 if now else hard, hard))


def step(self, batch, progress):
    if str(progress.step) in (first, last):
        full(str(progress.step) == first)
    return true_step(self, batch, progress)


def finish(*given):
    full(first == "encoder")
    return true_finish(*given)


true_step, Stepper.__call__ = Stepper.__call__, step
if first == "encoder":
    true_finish, pretrain.finish = pretrain.finish, finish
full(first == "start")
try:
    pretrain.main(arguments)
finally:
    full(False)
