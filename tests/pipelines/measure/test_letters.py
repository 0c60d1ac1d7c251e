"""What looks like letters: pages do, photos, noise and gratings do not; each block by its rule written out."""

import tarfile
from pathlib import Path

import numpy as np
import pytest
from pictures import jpeg, picture
from PIL import Image, ImageDraw, ImageFont

import headrace
from headrace.pipelines.measure.letters import letters
from headrace.pipelines.measure.measure import measure

WORDS = "a quick brown fox jumps over the lazy dog while seven grey owls look on from an old stone wall".split()
SAMPLES = sorted((Path(headrace.__file__).parent.parent / "shared" / "data").glob("imagenet-sample-0.tar"))


def page(lines, ground=(250, 250, 245), ink=(20, 20, 30), seed=0, over=None):
    """Words on plain ground, or over an image: 500 px, so many lines of them."""
    rng, size = np.random.default_rng(seed), round(500 / lines / 1.3)
    image = Image.new("RGB", (560, 500), ground) if over is None else over.resize((560, 500))
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(size=size)
    for line in range(lines):
        draw.text((6, line * 500 / lines), " ".join(rng.choice(WORDS, 60)), font=font, fill=ink)
    return image


def text_of(image):
    return float(measure(jpeg(image, 85)).row["text"])


def by_the_rule(luma):
    """The share of blocks, by loops over sorted runs in place of counters."""
    luma = luma.astype(int)
    found = []
    for y in range(0, luma.shape[0] // 16 * 16, 16):
        for x in range(0, luma.shape[1] // 16 * 16, 16):
            block = luma[y : y + 16, x : x + 16]
            shares = [((block // 8 >= k) & (block // 8 < k + 4)).mean() for k in range(29)]
            off = block - 8 * (int(np.argmax(shares)) + 2)
            sides = (off <= -56).mean(), (off >= 56).mean()
            off = off if sides[1] > sides[0] else -off
            changes = []
            for lines in (off, off.T):
                kinds = [[v >= 56 for v in line if v >= 56 or v <= 16] for line in lines]
                changes.append(sum(a != b for kind in kinds for a, b in zip(kind, kind[1:])))
            plain = max(shares) >= 0.35 and max(sides) >= 0.08 and min(sides) <= 0.01
            chance = 2 * max(sides) * (1 - max(sides)) * 2 * 16 * 15  # of two pixels of all neighbours to differ
            strokes = changes[0] >= 26 and changes[1] >= 18 and sum(changes) <= 0.8 * chance
            found.append(plain and strokes)
    return np.mean(found) if found else 0


@pytest.mark.parametrize("size", [(100, 140), (16, 16), (15, 90), (47, 33)])
def test_a_share_is_that_of_the_rule(size):
    rng = np.random.default_rng(3)
    words = np.asarray(page(24).convert("L"))[: size[0], : size[1]]
    mixed = np.where(rng.random(size) < 0.02, 255 - words, words).astype(np.uint8)
    for luma in (np.ascontiguousarray(words), mixed, rng.integers(0, 256, size, dtype=np.uint8)):
        assert letters(luma) == pytest.approx(by_the_rule(luma))


@pytest.mark.parametrize("lines", [14, 18, 24, 30])
@pytest.mark.parametrize("colours", [{}, {"ground": (10, 20, 60), "ink": (240, 240, 200)}])
def test_pages_of_words_are_text(lines, colours):
    assert text_of(page(lines, **colours)) > 0.4


def test_words_on_a_part_of_an_image_count_by_their_area():
    half = page(20)
    half.paste(picture(1).resize((560, 250)), (0, 250))
    assert 0.2 < text_of(half) < 0.6 < text_of(page(20))
    assert text_of(page(3)) < 0.1  # a heading, larger than a block


def test_what_is_no_text():
    rng, x = np.random.default_rng(0), np.arange(256)
    gratings = [np.tile(np.where(x // width % 2, 230, 20).astype(np.uint8), (192, 1)) for width in (1, 2, 4, 8)]
    noise = [rng.integers(0, 256, (192, 256), dtype=np.uint8) for _ in range(3)]
    specks = [np.where(rng.random((192, 256)) < share, 0, 230).astype(np.uint8) for share in (0.05, 0.15, 0.3)]
    flat = [np.full((192, 256), 200, np.uint8)]
    for luma in (*gratings, *(one.T.copy() for one in gratings), *noise, *specks, *flat):
        assert letters(luma) < 0.2
    assert all(text_of(picture(seed, (320, 240))) < 0.1 for seed in range(8))


def test_photos_are_no_text(photo_folder):
    photos = [path.read_bytes() for path in sorted(photo_folder.rglob("*.jpg"))]
    for path in SAMPLES:
        with tarfile.open(path) as tar:
            photos += [tar.extractfile(member).read() for member in filter(tarfile.TarInfo.isfile, list(tar)[:120])]
    found = [float(measure(data).row["text"]) for data in photos]
    assert max(found) <= 0.4 and np.median(found) < 0.05
