"""Image bytes on disk -> `Batch` on the device. Files in the order in which a batch passes through them:

    spec.py           the contracts: ViewSpec, ViewParams, MaskSpec, InputSpec, Batch, ByteSource, Loader
    rng.py            counter-based random numbers: a function of seed, epoch, sample and purpose
    draw.py           InputSpec -> ViewParams: what happens to every sample of an epoch
    masks.py          MaskSpec -> which patches are hidden
    order.py          which samples each rank reads at which step
    sources/          what images are stored in: folders, tar shards
    shard.py          a folder -> tar shards with an index
    decode.py         encoded bytes -> upright RGB pixels
    reference.py      the oracle: one sample at a time
    dali_loader.py    decode and crop in DALI
    memory_loader.py  a data set that fits into memory
    device.py         crops -> finished views on the device

Nothing is imported here: the workers of `shard.py` start without torch.
"""
