"""Image bytes on disk -> `Batch` on the device. Files in the order in which a batch meets them:

spec.py           the contracts: ViewSpec, ViewParams, InputSpec, Batch, ByteSource, Loader; mask_spec.py: the masks'
recipes.py        the views of published methods by name
sources/          what images are stored in: folders, tar shards
shard.py          a source -> tar shards with an index; sharding/ does the work
check.py          whether a data set is what it should be; check_tar.py: one tar of it
order.py          which samples each rank reads at which step
rng.py            random numbers as a function of seed, stream, epoch and sample
draw.py           InputSpec -> ViewParams: what happens to every sample of an epoch
randaugment.py    RandAugment: what is drawn, and its operations
mixing.py         Mixup and CutMix of a finished batch
masks.py          MaskSpec -> which patches are hidden
decode.py         encoded bytes -> upright RGB pixels; jpeg.py: size and orientation without a decoder
encode.py         what sharding does to an image: keep its bytes, or write a smaller JPEG
reference.py      the oracle: one sample at a time
base_loader.py    what every loader does alike; device.py: small tensors to the device in one copy
cut.py            fast decoding, and crops written where the batch holds them
finish.py         rare crops, and what happens to whole batches before and after `kernels.augment`
cpu_loader.py     decoding and whole views in our own threads; cpu_augment.py: their compiled loops
dali_loader.py    decode and crop in DALI
stream_loader.py  shards behind an address, through the webdataset library
ffcv_loader.py    .beton files with the pixels that FFCV makes of them
memory_loader.py  images held in memory: on the device, or for the threads of cpu_loader.py
loaders.py        which loader serves a source

Nothing is imported here: the workers of `shard.py` start without torch.
"""
