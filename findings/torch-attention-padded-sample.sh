#!/usr/bin/env bash
# torch.nn.MultiheadAttention gives NaN or zeros for a fully padded sample, by need_weights and by grad mode.
#
# Expected: need_weights decides whether weights are returned and how fast it goes; no_grad and eval decide about a fast
#   path that is there for speed. None of them decides what the output is. scaled_dot_product_attention gives zeros for
#   a row that may attend to nothing; a batch that is padded to full size has such samples.
# Happens: one module, one input (the last sample is padding throughout): NaN with need_weights=True; with
#   need_weights=False zeros (the bias of the projection) in training, zeros in eval mode with gradients, and NaN in
#   eval mode without. The other sample's output agrees, yet with need_weights=True a loss of that one alone has NaN in
#   its gradient.
# Versions: those printed, on CPU, Python 3.11. Seen on 2026-11-30.
# Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.MultiheadAttention.html (need_weights, fast path);
#   reported in part in https://github.com/pytorch/pytorch/issues/160064, where the mask covers whole heads
#
# Printed, and compared with at the end:
#> torch 2.14.1
#> scaled_dot_product_attention, nothing to attend to: [0.0]
#> need_weights=True, train, with gradients: NaN
#> need_weights=True, train, without gradients: NaN
#> need_weights=True, eval, with gradients: NaN
#> need_weights=True, eval, without gradients: NaN
#> need_weights=False, train, with gradients: [0.0]
#> need_weights=False, train, without gradients: [0.0]
#> need_weights=False, eval, with gradients: [0.0]
#> need_weights=False, eval, without gradients: NaN
#> the other sample agrees: True
#> need_weights=True: gradient of the other sample finite: False
#> need_weights=False: gradient of the other sample finite: True
set -euo pipefail
script=$(realpath "$0") room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
cd "$room"
python3 -m venv venv
venv/bin/pip install -q torch==2.14.1 numpy==2.4.6
cat >look.py <<'PY'
import torch
from torch.nn.functional import scaled_dot_product_attention as attention

print("torch", torch.__version__.split("+")[0])
torch.manual_seed(0)
module = torch.nn.MultiheadAttention(8, 2, batch_first=True)
x = torch.randn(2, 4, 8)
padding = torch.tensor([[False, False, False, True], [True] * 4])
nowhere = torch.zeros(4, 4, dtype=torch.bool)
print("scaled_dot_product_attention, nothing to attend to:", attention(x, x, x, attn_mask=nowhere).unique().tolist())
valid = []
for need_weights in (True, False):
    for mode in ("train", "eval"):
        for gradients in (True, False):
            with torch.set_grad_enabled(gradients):
                output, _ = module.train(mode == "train")(x, x, x, key_padding_mask=padding, need_weights=need_weights)
            valid.append(output[0])
            padded = "NaN" if output[1].isnan().all() else output[1].unique().tolist()
            print(f"need_weights={need_weights}, {mode}, {'with' if gradients else 'without'} gradients: {padded}")
print("the other sample agrees:", all(torch.allclose(valid[0], other, atol=1e-6) for other in valid))
for need_weights, output in ((True, valid[0]), (False, valid[4])):
    (gradient,) = torch.autograd.grad(output.sum(), module.in_proj_weight)
    print(f"need_weights={need_weights}: gradient of the other sample finite: {bool(gradient.isfinite().all())}")
PY
venv/bin/python look.py | tee seen
diff seen <(sed -n 's/^#> //p' "$script") && echo "as on 2026-11-30"
