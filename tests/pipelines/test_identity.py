"""What a checkpoint notes of its data: the same wherever a set lies, another when the set is, and cheap at any size."""

import shutil

import numpy as np

from headrace.pipelines import identity as identities
from headrace.pipelines.identity import identity, spread
from headrace.pipelines.sources import open_source
from headrace.pipelines.sources.arrays import ArraySource


def test_an_identity_is_of_what_is_in_a_set_and_costs_the_same_however_large(photo_folder, tmp_path, monkeypatch):
    here, there = (open_source(photo_folder), open_source(shutil.copytree(photo_folder, tmp_path / "there")))
    assert identity(here) == identity(there)
    assert spread(24, 1024) == list(range(24)) and spread(10**7, 5) == [0, 2500000, 5000000, 7499999, 9999999]
    asked = []

    class Counting(ArraySource):
        def __len__(self):
            return 10**7

        def read(self, index):
            asked.append(("read", index))
            return self.images[index % 2]

        def size(self, index):
            return None

        def label(self, index):
            asked.append(("label", index))
            return index % 2

    source = Counting(np.zeros((2, 4, 4, 3), np.uint8), [0, 1])
    first = identity(source)
    assert len(asked) == identities.LOOKED_AT + identities.READ and first["images"] == 10**7
    monkeypatch.setattr(Counting, "label", lambda self, index: (index + (index > 10**6)) % 2)
    changed = {key for key, value in identity(source).items() if value != first[key]}
    assert changed == {"labels"}


def test_a_set_that_gives_other_bytes_each_time_is_told_by_the_rest():
    class Augmented:
        name, classes = "augmented", None

        def __len__(self):
            return 3

        def read(self, index):
            return np.random.default_rng().integers(0, 256, 9, np.uint8)

        def label(self, index):
            return -1

        def key(self, index):
            return str(index)

        def size(self, index):
            return None

    assert identity(Augmented()) == identity(Augmented()) and "contents" not in identity(Augmented())


def test_shards_of_other_sizes_are_another_set_for_a_shuffle_by_shards(photo_folder):
    source = open_source(photo_folder)
    assert identity(source, (12, 12)) != identity(source, (8, 16))
    assert identity(source, 6) == identity(source)
