"""Image bytes on disk -> `Batch` on the device, one room a journey:

spec.py           the contracts: ViewSpec, ViewParams, InputSpec, Batch, ByteSource, Loader; mask_spec.py: the masks'
order.py          which samples each rank reads at which step
identity.py       which data set a source is, told in a moment
rng.py            random numbers as a function of seed, stream, epoch and sample
numba_cache.py    how loops are compiled, and where that is kept
images/           encoded bytes <-> pixels
remote/           folders behind an address, and what is kept of them on this machine
sources/          what images are stored in: folders, tar shards, lists, published sets
measure/          what an image is like, as figures and hashes, and which images are nearly equal
shard.py          a source -> tar shards with an index; sharding/ does the work, workers.py: in several processes
check.py          whether a data set is what it should be; check_tar.py: one tar of it;
                  check_far.py: those behind an address; range_use.py: deep images
plan/             several sets in one run: shares, filters, weights, and their order
pixels/           what was decoded once, in files beside the tars
views/            what a view or a mask is, what is drawn for it, how its pixels are made
loaders/          batches: one loader for each way to get at pixels

Who knows whom: images, remote -> nobody; sources -> images, remote; views -> images; measure -> images, sources;
sharding -> images, remote, sources, measure; plan -> sources; pixels -> images, sources, plan, views; loaders -> all
but sharding. Nothing is imported here before it is asked for: workers of `shard.py` do without torch.
"""

from ..lazy import face

__getattr__, __dir__, __all__ = face(
    __name__,
    {
        "spec": "Batch ByteSource InputSpec Loader LoaderStats Operation RandAugment RandomErasing ViewParams ViewSpec"
        " BlockMask CellMask CropMask Mask MaskSpec Place RandomMask SharedMask TargetBlocksMask VariedMask"
        " WeightedMask",
        "order": "Order",
        "plan.columns": "folder_beside write_columns",
        "plan.mixture": "MixedOrder Part",
        "plan.order_of": "order_of",
        "plan.sets": "open_plan",
        "plan.spec": "MixSpec SetSpec",
        "sources": "open_source",
        "sources.arrays": "ArraySource",
        "sources.dataset": "DatasetSource",
        "views.recipes": "VIEWS view MASKS mask",
        "views.draw": "draw_views",
        "views.masks": "draw_mask",
        "views.reference": "reference_views",
        "loaders.base": "LoaderError",
        "loaders.choose": "choose_loader make_loader",
        "loaders.epochs": "EpochLoader loader",
        "loaders.quarantine": "Quarantine",
    },
)
