"""What a view is. Random draws are data: first parameters, then pixels.

recipes.py        the views of published methods by name
draw.py           InputSpec -> ViewParams: what happens to every sample of an epoch
masks.py          MaskSpec -> which patches are hidden
mixing.py         Mixup and CutMix of a finished batch
randaugment.py    RandAugment: what is drawn, and its operations
reference.py      the oracle: one sample at a time
cut.py            fast decoding, and crops written where the batch holds them
finish.py         rare crops, and what happens to whole batches before and after `kernels.augment`
cpu_augment.py    the colour half of a view on a CPU: compiled loops
yuv.py            RGB <-> luma and half the chroma

Nothing here knows where images come from or who asks for them.
"""
