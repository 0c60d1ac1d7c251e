"""Validation images that are training images as well, as far as `headrace know` has written it down."""

from __future__ import annotations

import json

from ...errors import UserError
from ...pipelines.measure.store import AGAINST, FOLDER, about
from ...pipelines.plan.columns import folder_beside
from ...pipelines.sources.stream import StreamSource
from ...pipelines.spec import ByteSource


def leak_remarks(train: ByteSource, val: ByteSource) -> list[str]:
    """A sentence if the table beside the training set says that it has images of this validation set."""
    if isinstance(train, StreamSource) or isinstance(val, StreamSource):
        return []
    try:
        file = folder_beside(train.name) / FOLDER / AGAINST
        overlaps = json.loads(file.read_bytes())
    except (UserError, OSError, ValueError):  # no such table, or of a source that lies nowhere
        return []
    own, where = about(val), f"{val.name} are in {train.name}"
    return [
        f"{one['found']:,} of {len(val):,} images of {where}, or nearly, as headrace know found, "
        'so these figures are partly of images that were learned from; where: "not leaked" leaves them out of training'
        for one in overlaps
        if one["found"] and one["about"] == own
    ]
