"""Frozen probes on patches: what an encoder's maps tell of the class of every pixel, without training the encoder.

features.py   maps of a set, computed once, and the classes of its patches; what both commands share
knn.py        headrace dense-knn       linear.py   headrace dense-linear
"""
