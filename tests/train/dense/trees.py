"""Small VOC, COCO, Cityscapes and ADE20K trees in their own formats, with shapes whose boxes and masks are known.

The shapes lie on crops of photos where `../shared/data` has some, else on smooth textures.
"""

import io
import json
import tarfile
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

import headrace
from headrace.pipelines.sources.segmentation import _CITYSCAPES_IDS, CITYSCAPES_CATEGORIES
from headrace.pipelines.sources.voc import CATEGORIES

PHOTOS = Path(headrace.__file__).parent.parent / "shared/data/imagenet-sample-0.tar"
KINDS = ("rectangle", "ellipse", "triangle")
SHADES = ((220, 40, 40), (40, 200, 60), (50, 70, 230))
VOC_KINDS = ("bottle", "cat", "sofa")  # what the shapes are called there
COCO_KINDS = {18: "dog", 1: "person", 44: "bottle"}  # ids have gaps and no order


@lru_cache(maxsize=1)
def _photos():
    if not PHOTOS.exists():
        return []
    with tarfile.open(PHOTOS) as archive:
        names = [m for m in archive.getmembers() if m.name.lower().endswith((".jpg", ".jpeg"))][:40]
        return [Image.open(io.BytesIO(archive.extractfile(m).read())).convert("RGB") for m in names]


def background(rng, size):
    photos = _photos()
    if photos:
        photo = photos[rng.integers(len(photos))]
        scale = max(size[0] / photo.width, size[1] / photo.height)
        return photo.resize((int(np.ceil(photo.width * scale)), int(np.ceil(photo.height * scale)))).crop((0, 0, *size))
    return Image.fromarray(rng.integers(60, 200, (4, 4, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)


def scene(seed, size=(96, 72), count=2, largest=0.5):
    """(image, [(kind, polygon as x, y, x, y ..., mask (H, W) bool)]), later shapes over earlier ones; all stay in
    halves of the picture, so that none hides another."""
    rng = np.random.default_rng(seed)
    width, height = size
    image, found = background(rng, size), []
    for slot in range(count):
        kind = int(rng.integers(len(KINDS)))
        room = width // count
        w, h = (int(rng.uniform(0.6 * largest, largest) * side * s) for side, s in ((room, 1.6), (height, 1)))
        w = min(w, room - 2)
        left, top = slot * room + int(rng.integers(1, room - w)), int(rng.integers(1, height - h))
        points = _points(kind, left, top, w, h)
        ImageDraw.Draw(image).polygon(points, fill=SHADES[kind])
        mask = Image.new("1", size)
        ImageDraw.Draw(mask).polygon(points, fill=1)
        found.append((kind, [float(value) for point in points for value in point], np.array(mask)))
    return image, found


def _points(kind, left, top, w, h):
    if kind == 0:
        return [(left, top), (left + w - 1, top), (left + w - 1, top + h - 1), (left, top + h - 1)]
    if kind == 2:
        return [(left + w // 2, top), (left + w - 1, top + h - 1), (left, top + h - 1)]
    angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    x, y = (np.round(a + (s - 1) / 2 * (1 + f(angles))) for a, s, f in ((left, w, np.cos), (top, h, np.sin)))
    return list(zip(x.tolist(), y.tolist()))


def box_of(mask):
    """(left, top, right, bottom) edges."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def save(image, path, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def _object(name, mask, difficult):
    left, top, right, bottom = box_of(mask)
    box = f"<xmin>{left + 1}</xmin><ymin>{top + 1}</ymin><xmax>{right}</xmax><ymax>{bottom}</ymax>"
    return (
        f"<object><name>{name}</name><pose>Unspecified</pose><truncated>0</truncated>"
        f"<difficult>{int(difficult)}</difficult><bndbox>{box}</bndbox></object>"
    )


def voc(root, splits, size=(96, 72), **scenes):
    """``{"2007": {"trainval": 8, "test": 4}}``: a devkit for detection; every fourth image has a difficult object."""
    for year, counts in splits.items():
        folder, number = root / f"VOCdevkit/VOC{year}", 0
        for split, count in counts.items():
            ids = []
            for _ in range(count):
                number += 1
                ids.append(f"{number:06d}" if year == "2007" else f"2008_{number:06d}")
                image, shapes = scene(1000 * int(year[-2:]) + number, size, **scenes)
                save(image, folder / f"JPEGImages/{ids[-1]}.jpg", quality=95)
                objects = [
                    _object(VOC_KINDS[kind], mask, place > 0 and number % 4 == 0)
                    for place, (kind, _, mask) in enumerate(shapes)
                ]
                head = f"<folder>VOC{year}</folder><filename>{ids[-1]}.jpg</filename>"
                about = f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>"
                write(
                    folder / f"Annotations/{ids[-1]}.xml",
                    f"<annotation>{head}{about}<segmented>0</segmented>{''.join(objects)}</annotation>",
                )
            write(folder / f"ImageSets/Main/{split}.txt", "".join(f"{name}\n" for name in ids))
    return root / "VOCdevkit"


def coco(root, splits, size=(96, 72), crowd=True, **scenes):
    """``{"train": 8, "val": 4}``: polygons, and in every fourth image a crowd with run lengths in its corner."""
    for split, count in splits.items():
        images, annotations = [], []
        for number in range(count):
            image_id = 7 * number + 100
            name = f"{image_id:012d}.jpg"
            image, shapes = scene(hash_of(split) + number, size, **scenes)
            save(image, root / f"{split}2017/{name}", quality=95)
            images.append({"id": image_id, "file_name": name, "width": size[0], "height": size[1]})
            for kind, polygon, mask in shapes:
                left, top, right, bottom = box_of(mask)
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": image_id,
                        "category_id": list(COCO_KINDS)[kind],
                        "bbox": [left, top, right - left, bottom - top],
                        "area": float(mask.sum()),
                        "iscrowd": 0,
                        "segmentation": [polygon],
                    }
                )
            if crowd and number % 4 == 3:
                corner = np.zeros(size[::-1], bool)
                corner[-12:, -16:] = True
                flat = corner.T.ravel()
                edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
                runs = np.diff(np.concatenate([[0], edges, [flat.size]]))
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": image_id,
                        "category_id": 1,
                        "bbox": [size[0] - 16, size[1] - 12, 16, 12],
                        "area": 192,
                        "iscrowd": 1,
                        "segmentation": {"counts": runs.tolist(), "size": [size[1], size[0]]},
                    }
                )
        categories = [{"id": n, "name": name, "supercategory": "thing"} for n, name in COCO_KINDS.items()]
        content = {"images": images, "annotations": annotations, "categories": categories}
        write(root / f"annotations/instances_{split}2017.json", json.dumps(content))
    return root


def hash_of(text):
    return sum(map(ord, text)) * 10_000


def _classes(shapes, size, numbers, rest):
    mask = np.full(size[::-1], rest, np.uint8)
    for kind, _, inside in shapes:
        mask[inside] = numbers[kind]
    return mask


def voc12aug(root, counts, size=(96, 72), **scenes):
    """``{"train": 6, "val": 4, "aug": 4}``: palette masks with a border that does not count; gray ones of aug."""
    folder = root / "VOCdevkit/VOC2012"
    numbers = [1 + CATEGORIES.index(name) for name in VOC_KINDS]
    for split, count in counts.items():
        ids = [f"2009_{hash_of(split) % 9973 + number:06d}" for number in range(count)]
        for name in ids:
            image, shapes = scene(hash_of(name), size, **scenes)
            save(image, folder / f"JPEGImages/{name}.jpg", quality=95)
            mask = _classes(shapes, size, numbers, 0)
            if split != "aug":
                mask[0] = 255
            mask = Image.fromarray(mask)
            if split != "aug":
                mask = mask.convert("P")
                mask.putpalette([value % 256 for n in range(256) for value in (n * 37, n * 91, n * 151)])
            save(mask, folder / f"SegmentationClass{'Aug' if split == 'aug' else ''}/{name}.png")
        write(folder / f"ImageSets/Segmentation/{split}.txt", "".join(f"{name}\n" for name in ids))
    return root / "VOCdevkit"


def cityscapes(root, counts, size=(128, 64), **scenes):
    """``{"train": 6, "val": 3}``: ids as published; of every other image train ids, too."""
    ids = [_CITYSCAPES_IDS[CITYSCAPES_CATEGORIES.index(name)] for name in ("car", "person", "sky")]
    for split, count in counts.items():
        for number in range(count):
            name = f"{split}/{('aachen', 'ulm')[number % 2]}/{('aachen', 'ulm')[number % 2]}_{number:06d}_000019"
            image, shapes = scene(hash_of(split) + 77 + number, size, **scenes)
            save(image, root / f"leftImg8bit/{name}_leftImg8bit.png")
            mask = _classes(shapes, size, ids, 7)  # road
            mask[-4:] = 1  # the own car, which does not count
            save(Image.fromarray(mask), root / f"gtFine/{name}_gtFine_labelIds.png")
            if number % 2:
                train = np.full(256, 255, np.uint8)
                train[list(_CITYSCAPES_IDS)] = range(19)
                save(Image.fromarray(train[mask]), root / f"gtFine/{name}_gtFine_labelTrainIds.png")
    return root


def ade20k(root, counts, size=(96, 72), **scenes):
    """``{"training": 6, "validation": 3}``"""
    for split, count in counts.items():
        short = {"training": "train", "validation": "val"}[split]
        for number in range(count):
            name = f"ADE_{short}_{number + 1:08d}"
            image, shapes = scene(hash_of(split) + 5 + number, size, **scenes)
            save(image, root / f"images/{split}/{name}.jpg", quality=95)
            mask = _classes(shapes, size, (1, 13, 150), 3)
            mask[:3] = 0
            save(Image.fromarray(mask), root / f"annotations/{split}/{name}.png")
    rows = "".join(f"{n}\t0.1\t10\t2\t1\tthing {n}, other name\n" for n in range(1, 151))
    write(root / "objectInfo150.txt", "Idx\tRatio\tTrain\tVal\tStuff\tName\n" + rows)
    return root
