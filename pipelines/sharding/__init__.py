"""How `shard.py` writes a data set.

plan.py        source -> which images go into which shard, and a fingerprint of what was asked
writer.py      images -> one tar with its DALI index: every byte is read, hashed and written once
progress.py    what is shown meanwhile, and which part of the work is a process's own
workspace.py   ``<out>/.sharding``: finished shards wait there for the last one; what a resume finds
measured.py    near duplicates that are left out, and columns beside the shards
upload.py      a finished data set -> an object store
beton.py       the same images as one FFCV file

Nothing here imports torch: a worker starts in a fifth of a second.
"""
