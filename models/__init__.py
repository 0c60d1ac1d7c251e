"""Backbones and algorithms.

algorithm.py     what every algorithm is: `Algorithm`, `Progress`, `StepOutput`
algorithms/      one file per method; its file name is its name in a recipe
backbones/       encoders
self_distillation/  what iBOT, DINOv2 and DINOv3 share
dense/           what detectors and segmenters put on encoders
targets/         what masked image models predict, other than pixels
decoders.py      what turns visible tokens back into patches      reconstruct.py   predictions as pictures
heads.py         projection and prediction heads                  teacher.py       momentum copies
memory.py        queues and memories of samples                   clustering.py    k-means and its repairs
stage_pools.py   the stages of a ResNet as linear probes see them
distributed.py   gathers with gradients, shuffling, synchronised batch normalisation
sample_losses.py losses of single samples, for `StepOutput.per_sample`
meters.py        whether an encoder works, without labels
words.py         hidden patches and the words a tokenizer has for them: BEiT, BEiT v2, CAE
smoke.py         tiny counterparts of views and backbones         weights.py       weights for another image size
"""

from ..lazy import face

__getattr__, __dir__, __all__ = face(
    __name__,
    {
        "algorithm": "Algorithm Progress StepOutput",
        "algorithms": "algorithm_names find_algorithm inputs_of",
        "backbones": "AnyBackboneConfig BackboneConfig build_backbone HiViT MixMIMTransformer ResNet Swin ViT",
        "decoders": "MAEDecoder MixMIMDecoder",
        "distributed": "gather_with_gradient synchronize_batch_norm",
        "heads": "DINOHead projection_mlp",
        "memory": "Queue SampleMemory",
        "smoke": "tiny_backbone tiny_view",
        "teacher": "Teacher cosine_momentum",
        "weights": "load_weights",
    },
)
