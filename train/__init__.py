"""From batches to an encoder, and how good it is.

pretrain.py      the entry of torchrun: recipe -> run     pretrain_command.py   its arguments
resume.py        what a run continues from, and whether it may
ledger.py        last loss, average, visits and step of each sample
notebook.py      the same from Python: `headrace.pretrain`, `embed`, `knn`
announcement.py  what a run says of itself at its start and at its end
ending.py        what is left to do behind the last step
precision.py     which precision a device is good at      heap.py   freed memory of runs on CPUs is kept
recipe/          YAML -> checked dataclasses: what a run is
foreign/         how other code bases name and lay out weights: their checkpoints, read
init.py          weights that a run begins with         lora.py        low-rank matrices beside them
engine/          the loop, the step, checkpoints, processes: how it goes
evaluation/      features of an encoder, and what they are worth
dense/           detectors and segmenters on encoders
patches/         what an encoder's features of patches tell of pixels, without training it

Who knows whom: recipe -> nobody; engine -> recipe; evaluation -> engine, recipe; dense -> all three; patches -> all
four. `pretrain.py` puts them together; fine-tuning and dense training are runs of its making.
"""

from ..lazy import face

__getattr__, __dir__, __all__ = face(
    __name__,
    {
        "recipe.recipe": "Recipe load_recipe smoke",
        "engine.checkpoint": "load_algorithm",
        "engine.distributed": "Launch launch pick_device",
        "engine.metrics": "read_metrics",
        "engine.optim": "build_optimizer",
        "engine.step": "Stepper",
        "evaluation.embed": "Features embed evaluation_view",
        "evaluation.embed_encoder": "Encoder load_encoder",
        "evaluation.knn": "knn_accuracy knn_table nearest",
        "evaluation.linear_sweep": "fit_heads",
    },
)
