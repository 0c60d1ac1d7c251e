"""Copies are found, whatever was done to them, and unlike pictures stay apart."""

import numpy as np
import pytest
from pictures import jpeg, picture
from PIL import Image, ImageEnhance, ImageOps

from headrace.pipelines.measure import groups
from headrace.pipelines.measure.groups import CUTS, TURNS, Pictures, Union, duplicate_groups, images_in_both
from headrace.pipelines.measure.likeness import likeness, same_picture
from headrace.pipelines.measure.measure import measure

COUNT = 30


def cut(image, left, top, right, bottom):
    width, height = image.size
    return image.crop((left * width, top * height, width * (1 - right), height * (1 - bottom)))


CHANGES = {
    "coarse": lambda image: jpeg(image, 30),
    "half": lambda image: jpeg(image.resize((80, 60))),
    "twice": lambda image: jpeg(image.resize((320, 240), Image.Resampling.BICUBIC)),
    "cut at all edges": lambda image: jpeg(cut(image, 0.025, 0.025, 0.025, 0.025)),
    "cut at two edges": lambda image: jpeg(cut(image, 0, 0.05, 0.05, 0)),
    "mirrored": lambda image: jpeg(ImageOps.mirror(image)),
    "turned": lambda image: jpeg(image.transpose(Image.Transpose.ROTATE_270)),
    "turned and mirrored": lambda image: jpeg(ImageOps.mirror(image.transpose(Image.Transpose.ROTATE_90))),
    "brighter": lambda image: jpeg(ImageEnhance.Brightness(image).enhance(1.2)),
    "framed": lambda image: jpeg(ImageOps.expand(image, 12, (255, 255, 255))),
}


def pictures_of(encodings):
    found = [measure(data) for data in encodings]
    inside = [place for place, one in enumerate(found) if one.inner is not None]
    inner = [found[place].inner for place in inside]
    thumbs = np.stack([one.thumb for one in found])
    return Pictures(thumbs, np.array(inner, np.uint8).reshape(-1, 32, 32), np.array(inside, np.int64))


@pytest.fixture(scope="module")
def images():
    return [picture(seed) for seed in range(COUNT)]


@pytest.mark.parametrize("kind", CHANGES)
def test_copies_and_nothing_else(images, kind):
    encodings = [jpeg(image) for image in images] + [CHANGES[kind](image) for image in images]
    found = duplicate_groups(pictures_of(encodings))
    assert found.tolist() == [*range(COUNT)] * 2


def test_unlike_pictures_have_no_group(images):
    assert (duplicate_groups(pictures_of([jpeg(image) for image in images])) == -1).all()


def test_what_is_not_looked_for_is_not_found(images):
    both = [jpeg(images[0]), CHANGES["mirrored"](images[0]), jpeg(images[1]), CHANGES["cut at all edges"](images[1])]
    assert duplicate_groups(pictures_of(both), variants=CUTS).tolist() == [-1, -1, 0, 0]
    both = [jpeg(images[0]), CHANGES["mirrored"](images[0])]
    assert duplicate_groups(pictures_of(both), variants=TURNS).tolist() == [0, 0]
    assert duplicate_groups(pictures_of(both), radius=0, variants=()).tolist() == [-1, -1]


def test_skies_do_not_become_one_group():
    """Gradients have nearly equal hashes, and fit each other; noise of their own tells them apart."""
    rng = np.random.default_rng(0)
    slope = np.linspace(90, 200, 32)[:, None]
    skies = np.clip(slope * rng.uniform(0.8, 1.1, (60, 1, 1)) + rng.normal(0, 1.5, (60, 32, 32)), 0, 255)
    pictures = Pictures.of(skies.astype(np.uint8))
    whole = likeness(pictures.thumbs[:-1], pictures.thumbs[1:])
    assert (whole[:, 0] > 0.98).all() and (abs(whole[:, 1]) < 0.2).all()
    assert (duplicate_groups(pictures) == -1).all()


def test_images_of_one_colour_are_in_no_group():
    assert (duplicate_groups(Pictures.of(np.full((5, 32, 32), 100, np.uint8))) == -1).all()
    assert len(duplicate_groups(Pictures.of(np.empty((0, 32, 32), np.uint8)))) == 0


def test_a_frame_alone_is_no_likeness(images):
    """Thick bars make whole pictures alike: what they frame decides."""
    framed = pictures_of([jpeg(ImageOps.expand(image, 50, (0, 0, 0))) for image in images])
    assert same_picture(likeness(framed.thumbs[:-1], framed.thumbs[1:])).any()  # without looking inside
    assert (duplicate_groups(framed) == -1).all()


def test_one_picture_very_often(images, monkeypatch):
    """A thousand copies are a thousand comparisons, and not half a million."""
    compared = []
    monkeypatch.setattr(groups, "likeness", lambda a, *rest: compared.append(len(a)) or likeness(a, *rest))
    thumbs = np.concatenate(
        [np.repeat(pictures_of([jpeg(images[0])]).thumbs, 1000, 0)] + [pictures_of([jpeg(images[1])]).thumbs]
    )
    assert duplicate_groups(Pictures.of(thumbs)).tolist() == [0] * 1000 + [-1]
    assert sum(compared) <= 1000


def test_chains_make_one_group():
    union = Union(8)
    union.join(np.array([5, 1, 6]), np.array([1, 3, 2]))
    assert union.groups().tolist() == [-1, 0, 1, 0, -1, 0, 1, -1]
    assert union.roots(np.array([5, 6, 7])).tolist() == [1, 2, 7]


def test_images_that_are_in_both_sets(images):
    """Seven of theirs are ours: as they are, changed there, changed here."""
    ours = [jpeg(image) for image in images[:10]] + [
        CHANGES["cut at all edges"](images[12]),
        CHANGES["framed"](images[13]),
    ]
    kinds = ["coarse", "mirrored", "cut at two edges", "framed", "turned"]
    theirs = [CHANGES[kind](images[2 * at]) for at, kind in enumerate(kinds)] + [jpeg(image) for image in images[12:20]]
    found = images_in_both(pictures_of(ours), pictures_of(theirs))
    assert found.tolist() == [[0, 0], [2, 1], [4, 2], [6, 3], [8, 4], [10, 5], [11, 6]]
