"""The simplest loader there can be: one image after another, nothing ahead, nothing kept."""

import torch

from headrace.pipelines.loaders.base import BaseLoader
from headrace.pipelines.views.cut import decode_fast
from headrace.pipelines.views.finish import cut_view, places


class SerialLoader(BaseLoader):
    def _cut(self):
        plan, crops = self._plan(self._step), {}
        images = [decode_fast(encoded) for encoded in plan.encoded]
        for view in self.inputs.views:
            pixels = torch.empty((view.count, self.batch_size, view.size, view.size, 3), dtype=torch.uint8)
            for copy, rows in zip(places(plan.params[view.name]), pixels.numpy()):
                for image, place, out in zip(images, copy, rows):
                    cut_view(image, view, place, out)
            crops[view.name] = pixels.flatten(0, 1)
        return plan, crops
