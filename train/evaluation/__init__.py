"""What an encoder's features are worth.

embed.py            features of a data set            embed_store.py  the same on disk
embed_encoder.py    encoders by name                  evaluate.py     what the evaluation commands share
labels.py           two sets with the same classes, and images without a label
leakage.py          validation images that are known to be training images, too
knn.py              weighted k-NN on features         svm.py          VOC 2007
linear.py           linear probes: linear_sweep.py many heads at once, linear_protocols.py as published
finetune.py         classifiers on pre-trained encoders
score.py            k-NN while a run is going         sweep.py        a module over a whole set
"""
