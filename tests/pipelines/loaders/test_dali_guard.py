"""DALI is given bytes that our own decoder has found sound, and nothing else: counted at DALI's own door.

All damage here is of kinds that DALI, were it given them, would merely refuse.
"""

import threading

import numpy as np
import pytest
import torch
from PIL import Image

from headrace.pipelines.loaders import dali, sound
from headrace.pipelines.loaders.dali import DaliLoader
from headrace.pipelines.loaders.quarantine import QUARANTINE_FILE, Quarantine
from headrace.pipelines.order import Order
from headrace.pipelines.sources import open_source
from headrace.pipelines.spec import InputSpec, ViewSpec

INPUTS = InputSpec((ViewSpec(size=16),))


@pytest.fixture
def door(monkeypatch):
    """Everything that DALI was given to decode."""
    given, feed = [], DaliLoader._feed

    def watched(self):
        arrays = feed(self)
        given.extend(bytes(encoded) for encoded in arrays[0])
        return arrays

    monkeypatch.setattr(DaliLoader, "_feed", watched)
    return given


@pytest.fixture
def decoded(monkeypatch):
    """The bytes that our own decoder has looked at to prove them."""
    seen, plain, lock = [], sound.decode_plain, threading.Lock()

    def counted(encoded):
        with lock:
            seen.append(bytes(encoded))
        return plain(encoded)

    monkeypatch.setattr(sound, "decode_plain", counted)
    sound._known.clear()
    return seen


def photos(folder):
    return [path.read_bytes() for path in sorted(folder.rglob("*.jpg"))]


def read(loader, steps):
    try:
        return [next(loader) for _ in range(steps)]
    finally:
        loader.close()


def written(root, images):
    root.mkdir(exist_ok=True)
    for index, image in enumerate(images):
        (root / f"{index:03d}.jpg").write_bytes(image)
    return root


def cut(data):
    """Half of the scan, and an end marker: libjpeg warns, Pillow takes it."""
    scan = data.index(b"\xff\xda") + 14
    return data[: (scan + len(data)) // 2] + b"\xff\xd9"


def test_what_is_damaged_never_gets_there(door, photo_folder, tmp_path):
    whole = photos(photo_folder)
    images = list(whole)
    images[3], images[7], images[11] = cut(images[3]), images[7][:-300], images[11][: images[11].index(b"\xff\xda")]
    source = open_source(written(tmp_path / "set", images))
    loader = DaliLoader(source, INPUTS, Order(24, 8, seed=1), quarantine=Quarantine(source, 0.5))
    batches = read(loader, 9)
    assert set(door) - {bytes(dali._STAND_IN)} <= set(images[:3] + whole[4:7] + whole[8:11] + whole[12:])
    seen = {index for batch in batches for index in batch.ids.tolist()}
    assert seen == set(range(24)) - {7, 11}  # the third is an image, though no perfect one, and was made without DALI


def test_an_image_is_proven_once_for_all_loaders_of_a_process(door, decoded, photo_folder):
    source, order = open_source(photo_folder), Order(24, 8, seed=1)
    first = read(DaliLoader(source, INPUTS, order), 6)
    assert sorted(decoded) == sorted(photos(photo_folder)) and set(door) == set(decoded)
    again = read(DaliLoader(open_source(photo_folder), INPUTS, order), 6)
    assert len(decoded) == 24
    assert all(torch.equal(a.views["image"], b.views["image"]) for a, b in zip(first, again))


def test_bytes_that_have_changed_since_are_proven_anew(door, decoded, photo_folder, tmp_path):
    """In the file that a map shows: the same place, the same size."""
    images = photos(photo_folder)
    root = written(tmp_path / "set", images)
    source, order = open_source(root), Order(24, 24, shuffle=False)
    loader = DaliLoader(source, INPUTS, order, quarantine=Quarantine(source, 0.5))
    next(loader)
    damaged = cut(images[5]).ljust(len(images[5]), b"\0")
    (root / "005.jpg").write_bytes(damaged)
    read(loader, 6)
    assert damaged not in door and decoded.count(damaged) >= 1


@pytest.mark.parametrize("full", [False, True])
def test_what_one_process_has_proven_another_knows(full, decoded, photo_folder, tmp_path, monkeypatch):
    source, file = open_source(photo_folder), tmp_path / "run" / QUARANTINE_FILE
    if full:
        monkeypatch.setattr(
            sound.os, "pwrite", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device"))
        )
    for rank in range(2):
        read(DaliLoader(source, INPUTS, Order(24, 8), quarantine=Quarantine(source, 0.5, file)), 6)
        assert len(decoded) == (24 * (rank + 1) if full else 24)  # a disk that is full costs time, not the run
    assert (file.with_name(sound.SOUND_FILE).stat().st_size == 24 * 16) is not full


def test_a_file_of_marks_for_other_bytes_proves_nothing(decoded, photo_folder, tmp_path):
    source, path = open_source(photo_folder), tmp_path / sound.SOUND_FILE
    path.write_bytes(np.random.default_rng(0).bytes(24 * 16 - 5))
    marks = sound.SoundBytes(24, path)
    for index, image in enumerate(photos(photo_folder)):
        encoded = np.frombuffer(image, np.uint8)
        assert marks.proven(index, encoded) and marks.proven(index, encoded)
        assert not marks.proven(index, np.frombuffer(cut(image), np.uint8))
    assert len(decoded) == 48 and source.read(0).size


def test_a_sound_image_that_dali_refuses_goes_to_our_threads(photo_folder, tmp_path, monkeypatch):
    """As if an animation were a kind of image that is known to be safe."""
    images = photos(photo_folder)[:8]
    root = written(tmp_path / "set", images)
    Image.new("P", (40, 30), 7).save(root / "003.gif")
    (root / "003.jpg").unlink()
    source = open_source(root)
    plain = sound.decode_plain
    monkeypatch.setattr(sound, "decode_plain", lambda data: 1 if bytes(data[:3]) == b"GIF" else plain(data))
    sound._known.clear()
    loader = DaliLoader(source, INPUTS, Order(8, 4, seed=2))
    batches = read(loader, 4)
    assert sorted(i for batch in batches[:2] for i in batch.ids.tolist()) == list(range(8))
    assert not loader.stats().bad_images
    sound._known.clear()
