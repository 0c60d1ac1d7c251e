"""What an image is like, told by its pixels alone, and which images of a set are nearly the same.

measure.py      encoded bytes -> a row of figures and hashes, and a thumbnail: what each column means
statistics.py   figures of pixels, in one pass    letters.py        how much of them looks like letters
jpeg_quality.py the quality that a JPEG was written with
channels.py     ends, means and deviations of deep images' channels
hashes.py       perceptual hashes of thumbnails, and of their mirror images and turns
hamming.py      all pairs of hashes that differ in few bits: exact, in bounded memory
likeness.py     whether two thumbnails show the same picture
groups.py       images -> groups of near duplicates, and those of one set that are in another
store.py        rows and thumbnails of a set on disk, block by block

Nothing here imports torch: `shard.py` measures in its workers.
"""
