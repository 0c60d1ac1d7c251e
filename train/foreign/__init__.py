"""How other code bases name and lay out the weights of the encoders that headrace has.

names.py      pairs of names, in both directions; what a layout is
vit.py        Vision Transformers: timm, the authors of MAE, BEiT, DeiT III, MoCo v3, DINO to DINOv3 and CLIP, OpenMMLab
hugging_face.py     all that transformers has
swin.py mixmim.py hivit.py resnet.py     the other encoders
methods.py    whole pre-training methods: decoders, projectors, teachers, queues
read.py       files -> tensors, without running what is in them
pickled.py    what torch.save wrote, with stand-ins for objects         sharded.py    who joins a checkpoint in pieces
shapes.py     an encoder's configuration, read off its tensors
recognise.py  whose checkpoint it is
convert.py    the encoder of a checkpoint, and back; the report
"""
