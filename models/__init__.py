"""Backbones and algorithms.

algorithm.py     what every algorithm is: `Algorithm`, `Progress`, `StepOutput`
algorithms/      one file per method; its file name is its name in a recipe
backbones/       encoders: `vit.py`, `resnet.py`
decoders.py      what turns visible tokens back into patches
heads.py         projection heads
distributed.py   gathers with gradients, synchronised batch normalisation
"""
