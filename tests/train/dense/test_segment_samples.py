"""Images and masks as training sees them: geometry, distortion, crops, seeds, worker processes."""

import multiprocessing
import os
import signal
import time

import numpy as np
import pytest
import torch
from PIL import Image

from headrace.errors import ProcessError
from headrace.models.algorithms.segmenter import Segmenter
from headrace.models.backbones import ResNet
from headrace.pipelines.order import Order
from headrace.train.dense.image import distorted, fitted
from headrace.train.dense.loader import DRAWS, AnnotatedLoader, workers_watched
from headrace.train.dense.masks import Scene, collate


class Painted:
    """Images whose red is where their mask is 1; the rest is black."""

    categories, name = ["rest", "thing"], "painted"

    def __init__(self, mask):
        self.mask = mask

    def __len__(self):
        return 12

    def key(self, index):
        return str(index)

    def read(self, index):
        import io

        pixels = np.zeros((*self.mask.shape, 3), np.uint8)
        pixels[self.mask == 1, 0] = 255
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        return np.frombuffer(buffer.getvalue(), np.uint8)

    def target(self, index):
        return self.mask


def painted(width=90, height=60):
    mask = np.zeros((height, width), np.uint8)
    mask[10:30, 5:60] = 1
    return Painted(mask)


def config(**change):
    values = {"backbone": ResNet.Config("resnet18", width=8), "crop": 64, "scale": (90, 60)}
    return Segmenter.Config(**{**values, "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0), **change})


@pytest.mark.parametrize("flip", [0.1, 0.9])
def test_image_and_mask_move_together(flip):
    plain = [0.9] * 18  # no distortion
    rng = np.random.default_rng(0)
    for _ in range(20):
        draws = [rng.uniform(), flip, *plain, *rng.uniform(size=20)]
        sample = Scene(config())(painted(), 0, draws)
        image, mask = sample["image"], sample["mask"]
        assert image.shape == (3, 64, 64) and mask.shape == (64, 64)
        inside = mask != 255
        assert ((image[0] > 0.5) == (mask == 1))[inside].float().mean() > 0.98
        assert (image[:, ~inside] == 0).all() and mask[0, 0] != 255


def test_a_flip_mirrors():
    draws = [1 / 3, 0.9, *[0.9] * 18, *[0.0] * 20]  # ratio 1, the crop at the corner
    plain = Scene(config())(painted(), 0, draws)
    draws[1] = 0.1
    flipped = Scene(config())(painted(), 0, draws)
    width = 64
    assert torch.equal(flipped["mask"][:60, :width], plain["mask"][:60, :width].flip(1))
    assert torch.equal(flipped["image"][:, :60, :width], plain["image"][:, :60, :width].flip(2))


def test_no_class_fills_a_crop_if_it_can_be_helped():
    mask = np.zeros((200, 200), np.uint8)
    mask[:, 120:] = 1
    scene, rng, shares = Scene(config()), np.random.default_rng(1), []
    for _ in range(400):
        left, top, right, bottom = scene.crop_box(mask, rng.uniform(size=20).tolist())
        assert (right - left, bottom - top) == (64, 64) and 0 <= left and right <= 200
        share = (mask[top:bottom, left:right] == 1).mean()
        shares.append(max(share, 1 - share))
    assert np.mean(np.array(shares) < 0.75) == pytest.approx(1 - (1 - 31 / 137) ** 10, abs=0.05)  # ten of 137 places
    free = Scene(config(largest_share=1.0))
    boxes = [free.crop_box(mask, rng.uniform(size=20).tolist()) for _ in range(50)]
    assert max((mask[t:b, a:c] == 1).mean() for a, t, c, b in boxes) < 1  # one class alone is refused all the same


def test_sizes():
    assert fitted(500, 375, 2048, 512) == (683, 512) and fitted(375, 500, 2048, 512) == (512, 683)
    assert fitted(2048, 1024, 2049, 1025) == (2049, 1024)
    assert fitted(3000, 300, 2048, 512) == (2048, 205)


def test_distortion_by_its_parts():
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    pixels, none = np.asarray(image).astype(int), [0.9] * 9

    def changed(**draws):
        names = ["bright", "by", "first", "contrast", "factor", "saturate", "amount", "turn", "angle"]
        return np.asarray(distorted(image, [draws.get(n, v) for n, v in zip(names, none)])).astype(int)

    assert (changed() == pixels).all()
    assert (changed(bright=0.1, by=0.75) == np.clip(pixels + 16, 0, 255)).all()
    assert (changed(bright=0.1, by=0.0) == np.clip(pixels - 32, 0, 255)).all()
    for first in (0.1, 0.9):
        assert abs(changed(contrast=0.1, factor=0.25, first=first) - pixels * 0.75).max() < 1
    more, less = (changed(saturate=0.1, amount=amount) for amount in (0.99, 0.0))
    spread = np.ptp(pixels, axis=2)
    assert (np.ptp(less, axis=2) <= spread * 0.5 + 3).all() and (np.ptp(more, axis=2) >= spread - 3).all()
    turned = changed(turn=0.1, angle=0.99)
    assert abs(turned.max(2) - pixels.max(2)).max() <= 1 and abs(turned - pixels).max() > 20


def batches_of(source, **share):
    """Six steps of a loader."""
    order = Order(len(source), 4, seed=3)
    share = {"seed": 3, "device": torch.device("cpu"), "threads": 1, "rank": 0, "world": 1, **share}
    loader = AnnotatedLoader(source, Scene(config()), collate, order, **share)
    first = share.pop("first", 0)
    found = [next(loader) for _ in range(6 - first)]
    loader.close()
    return found


def test_a_sample_depends_on_seed_epoch_and_id_alone():
    source = painted()
    one = batches_of(source)
    shares = [batches_of(source, rank=rank, world=2, threads=2) for rank in (0, 1)]
    for step, batch in enumerate(one):
        halves = [share[step] for share in shares]
        assert torch.equal(batch.ids, torch.cat([half.ids for half in halves]))
        assert torch.equal(batch.views["image"], torch.cat([half.views["image"] for half in halves], 1))
        assert torch.equal(batch.labels, torch.cat([half.labels for half in halves]))
    masks = {(batch.epoch, int(i)): mask for batch in one for i, mask in zip(batch.ids, batch.labels)}
    assert not torch.equal(masks[0, 5], masks[1, 5])  # other draws in the next epoch
    order = Order(len(source), 4, seed=3)
    loader = AnnotatedLoader(
        source, Scene(config()), collate, order, seed=3, device=torch.device("cpu"), threads=1, rank=0, world=1
    )
    loader.load_state_dict({"step": 4})
    assert torch.equal(next(loader).views["image"], one[4].views["image"]) and loader.state_dict() == {"step": 5}
    loader.close()
    assert DRAWS >= 40  # what crop_box takes


def test_signals_to_workers():
    """Of schedulers they take none; one that is killed is named in a line, and nobody waits for it."""
    source = painted()
    share = {"seed": 3, "device": torch.device("cpu"), "threads": 1, "rank": 0, "world": 1}
    loader = AnnotatedLoader(source, Scene(config()), collate, Order(12, 4, seed=3), **share)
    first = next(loader)
    (worker,) = multiprocessing.active_children()
    for number in (signal.SIGTERM, signal.SIGUSR1):
        os.kill(worker.pid, number)
    assert [next(loader).step for _ in range(4)] == [1, 2, 3, 4] and worker.is_alive() and first.step == 0
    loader.close()
    assert not worker.is_alive()
    next(loader)  # starts another
    (worker,) = multiprocessing.active_children()
    with pytest.raises(ProcessError, match="worker .*(killed|exited|ended).*data.threads"), workers_watched():
        os.kill(worker.pid, signal.SIGKILL)
        for _ in range(50):
            next(loader)
            time.sleep(0.05)
    loader.close()
