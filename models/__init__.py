"""Backbones and algorithms.

algorithm.py     what every algorithm is: `Algorithm`, `Progress`, `StepOutput`
algorithms/      one file per method; its file name is its name in a recipe
backbones/       encoders
dense/           what detectors and segmenters put on encoders
targets/         what masked image models predict, other than pixels
decoders.py      what turns visible tokens back into patches      reconstruct.py   predictions as pictures
heads.py         projection and prediction heads                  teacher.py       momentum copies
memory.py        queues and memories of samples                   clustering.py    k-means and its repairs
stage_pools.py   the stages of a ResNet as linear probes see them
distributed.py   gathers with gradients, shuffling, synchronised batch normalisation
smoke.py         tiny counterparts of views and backbones         weights.py       weights for another image size
"""
