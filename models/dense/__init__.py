"""From images to boxes and masks: what detectors and segmenters put on an encoder.

algorithm.py what both have in common: an encoder, images of many sizes
maps.py      an encoder's maps at four strides; dilated ResNets
heads.py     classes of pixels: FCN, UPerNet
feature_map.py   one map of an encoder, whoever made it
regions.py   Faster and Mask R-CNN of torchvision's parts: the C4 head, losses over the global batch
"""
