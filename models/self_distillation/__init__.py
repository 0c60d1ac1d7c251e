"""What iBOT, DINOv2 and DINOv3 share: a student that sees masked and small crops, a teacher that follows it.

method.py      views, masks, heads and teacher: the base of the three
center.py      the running mean of a teacher's logits, and KoLeo over groups of the global batch
gram.py        similarities of patches held to those of an earlier teacher
patch_loss.py  the loss of masked patches, some at a time
subsets.py     which crops keep a residual branch
schedules.py   values that change over a run, as arrays
"""
