"""What the fork server of `processes.py` imports once. One thread: a fork does not take others along."""

import torch

from headrace.pipelines.loaders import cpu, memory  # noqa: F401
from headrace.train import pretrain  # noqa: F401

torch.set_num_threads(1)
