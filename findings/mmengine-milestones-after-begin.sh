#!/usr/bin/env bash
# MMEngine's MultiStepLR counts its milestones from begin, though they are documented as epochs of the run.
#
# Expected: "milestones" are epoch indices and the rate falls once the number of the epoch reaches one; "begin" and
#   "end" are the steps between which the scheduler acts. Behind a warm-up of 10 epochs (begin=10), milestone 30 is
#   epoch 30.
# Happens: with begin=10 the rate falls in epoch 40. With begin=10 and end=35 a milestone of 30 lies within the range
#   and the rate never falls. Nothing is warned of.
# Versions: those printed, Python 3.11. Seen on 2026-11-30.
# Source: https://mmengine.readthedocs.io/en/latest/api/generated/mmengine.optim.MultiStepLR.html; MMEngine's tutorial
#   on parameter schedulers (docs/zh_cn/tutorials/param_scheduler.md) has milestones name the epochs in which the rate
#   falls
#
# Printed, and compared with at the end:
#> mmengine 0.10.7, torch 2.14.1
#> milestones=[30]: falls in epochs [30]
#> milestones=[30], begin=10: falls in epochs [40]
#> milestones=[30], begin=10, end=35: falls in epochs []
set -euo pipefail
script=$(realpath "$0") room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
cd "$room"
python3 -m venv venv
venv/bin/pip install -q torch==2.14.1 numpy==2.4.6 mmengine==0.10.7
cat >look.py <<'PY'
import mmengine
import torch
from mmengine.optim import MultiStepLR

print(f"mmengine {mmengine.__version__}, torch {torch.__version__.split('+')[0]}")
for options in ({}, {"begin": 10}, {"begin": 10, "end": 35}):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = MultiStepLR(optimizer, milestones=[30], gamma=0.1, by_epoch=True, **options)
    rates = []
    for _ in range(60):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    falls = [epoch for epoch in range(1, 60) if rates[epoch] < rates[epoch - 1]]
    given = "".join(f", {name}={value}" for name, value in options.items())
    print(f"milestones=[30]{given}: falls in epochs {falls}")
PY
venv/bin/python look.py | tee seen
diff seen <(sed -n 's/^#> //p' "$script") && echo "as on 2026-11-30"
