"""Detection and segmentation: encoders on images whose annotations are boxes and masks.

run.py        what both commands do: an encoder in a recipe, training by the engine of pretrain.py, figures
loader.py     images with annotations -> batches, by worker processes; the same, each once, for tests
image.py      decoding, resizing, flips, colours
segment.py    headrace segment      masks.py   its samples      confusion.py   mIoU
detect.py     headrace detect       boxes.py   its samples      coco.py, voc.py   average precision
names.py      categories of the two sets, by name
picture.py    predictions beside the truth
"""
