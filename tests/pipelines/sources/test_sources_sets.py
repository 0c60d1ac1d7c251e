"""Published data sets, small and in their own layout, against what was put into them."""

import io
import json
import pickle

import numpy as np
import pytest
from PIL import Image

from headrace.errors import UserError
from headrace.pipelines.images.decode import DecodeError
from headrace.pipelines.images.rules import Rules
from headrace.pipelines.sources import open_source
from headrace.pipelines.sources.cue_conflict import CATEGORIES, IMAGENET_CLASSES
from headrace.pipelines.sources.segmentation import read_mask
from headrace.pipelines.spec import ByteSource
from headrace.train.dense.coco import decoded


def keys_and_labels(source):
    assert isinstance(source, ByteSource) and source.read(0).dtype == np.uint8
    again = pickle.loads(pickle.dumps(source))
    assert [again.key(i) for i in range(len(again))] == [source.key(i) for i in range(len(source))]
    return [(source.key(i), source.label(i)) for i in range(len(source))]


# Places205

PLACES = [("a/abbey/gsun_1.jpg", 0), ("y/yard/gsun 2.jpg", 2), ("a/apartment/outdoor/3.jpg", 1)]


@pytest.mark.parametrize("layout", ["published", "plain"])
def test_places205(tmp_path, write_files, encode, layout):
    images = "data/vision/torralba/deeplearning/images256" if layout == "published" else "train"
    form = "trainvalsplit_places205/{}_places205.csv" if layout == "published" else "meta/{}.txt"
    lines = "".join(f"{path} {label}\n" for path, label in PLACES)
    root = write_files(tmp_path / "Places205", {f"{images}/{path}": encode(n) for n, (path, _) in enumerate(PLACES)})
    write_files(root, {form.format("train"): lines, form.format("test"): "".join(f"{path}\n" for path, _ in PLACES)})
    for name in (f"places205:{root}", f"places205:{tmp_path}/places205?split=train"):  # both spellings are in use
        source = open_source(name)
        assert keys_and_labels(source) == PLACES and source.read(1).tobytes() == encode(1)
        assert source.classes == ["a/abbey", "a/apartment/outdoor", "y/yard"] and source.label_source == "list"
    if layout == "published":
        assert keys_and_labels(open_source(root)) == PLACES
        assert {label for _, label in keys_and_labels(open_source(f"places205:{root}?split=test"))} == {-1}


def test_places205_without_its_list(tmp_path, write_files, refused):
    write_files(tmp_path, {"meta/train.txt": "a/1.jpg 0\n"})
    refused(f"places205:{tmp_path}?split=val", "val_places205.csv", "meta/val.txt")
    refused(f"places205:{tmp_path}", "train/a/1.jpg does not exist")
    refused(f"places205:{tmp_path}/Places205", "does not exist")


# iNaturalist


def inat(**changes):
    content = {
        "images": [{"id": 70 - n, "file_name": f"train_val2018/Aves/{n}/{n}.jpg", "width": 1} for n in range(3)],
        "annotations": [{"id": n, "image_id": 68 + n, "category_id": 5 - n} for n in range(3)],
        "categories": [{"id": n, "name": f"species {n}"} for n in (0, 2, 5, 6)],
    }
    return json.dumps(content | changes)


def test_inaturalist(tmp_path, write_files, encode):
    root = tmp_path / "inaturalist2018"
    write_files(root, {f"train_val2018/Aves/{n}/{n}.jpg": encode(n) for n in range(3)} | {"train2018.json": inat()})
    spelled = f"inaturalist:{tmp_path}/iNaturalist2018"
    for name in (f"inaturalist:{root}", root, spelled, f"inaturalist:{root}/train2018.json"):
        source = open_source(name)
        assert keys_and_labels(source) == [(f"train_val2018/Aves/{n}/{n}.jpg", 3 + n) for n in range(3)]
        assert source.classes == ["species 0", "1", "species 2", "3", "4", "species 5", "species 6"]
        assert source.read(2).tobytes() == encode(2)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"annotations": [{"image_id": 68, "category_id": 1}]}, "image 70 has no annotation"),
        ({"annotations": [{"image_id": n, "category_id": 1} for n in (68, 69, 70, 70)]}, "several"),
        ({"annotations": [{"image_id": n, "category_id": 1} for n in (68, 69, 70, 71)]}, "belong to no image"),
        ({"annotations": [{"image_id": n} for n in (68, 69, 70)]}, "category_id"),
        ({"annotations": {}}, "no list 'annotations'"),
        ({"images": [{"id": n, "file_name": f"../{n}.jpg"} for n in (68, 69, 70)]}, "../68.jpg"),
        ({"images": [{"id": n, "file_name": f"/{n}.jpg"} for n in (68, 69, 70)]}, "/68.jpg"),
        ({"categories": [{"id": 10**9, "name": "x"}]}, "1000000000"),
        ({"images": [], "annotations": []}, "no image"),
    ],
)
def test_inaturalist_annotations_are_checked(tmp_path, write_files, refused, changes, words):
    write_files(tmp_path, {"train2018.json": inat(**changes)})
    refused(f"inaturalist:{tmp_path}", "train2018.json", words)


def test_inaturalist_without_its_file(tmp_path, write_files, refused):
    write_files(tmp_path, {"train2018.json": "{", "list.json": "[]"})
    refused(f"inaturalist:{tmp_path}?split=val", "val2018.json", "cannot be read")
    refused(f"inaturalist:{tmp_path}", "train2018.json", "cannot be read")
    refused(f"inaturalist:{tmp_path}/list.json", "no list 'images'")
    refused(f"inaturalist:{tmp_path}/list.json?split=val", "one split")


# VOC

VOC_NAMES = (
    "aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person "
    "pottedplant sheep sofa train tvmonitor"
).split()


def voc_xml(*objects):
    body = "".join(
        f"<object><name>{name}</name>{extra}<bndbox><ymin>{box[1]}</ymin><xmin>{box[0]}</xmin><xmax>{box[2]}</xmax>"
        f"<ymax>{box[3]}</ymax></bndbox><part><name>head</name><bndbox><xmin>1</xmin></bndbox></part></object>"
        for name, box, extra in objects
    )
    return f"<annotation><size><width>500</width></size>{body}</annotation>"


@pytest.fixture
def voc(tmp_path, write_files, encode):
    root = tmp_path / "VOCdevkit"
    for year, ids in {"VOC2007": ["000012", "000005", "000007"], "VOC2012": ["2008_000002"]}.items():
        images = {f"{year}/JPEGImages/{name}.jpg": encode(n + len(year) + int(name[-1])) for n, name in enumerate(ids)}
        write_files(root, images | {f"{year}/ImageSets/Main/trainval.txt": "\n".join(ids) + "\n"})
        for category in VOC_NAMES:
            codes = {"car": " 1", "dog": " 0"}
            lines = [f"{name} {codes.get(category, '-1')}" for name in ids if (category, name) != ("cat", "000007")]
            write_files(root, {f"{year}/ImageSets/Main/{category}_trainval.txt": "\n".join(lines) + "\n"})
    box = (voc_xml(("dog", (1, 1, 500, 375), "<difficult>1</difficult>"), ("tvmonitor", (45.7, 10, 60, 20), "")), "")
    write_files(root, {"VOC2007/Annotations/000005.xml": box[0], "VOC2007/Annotations/000007.xml": voc_xml()})
    return root


def test_voc_targets_translate_the_codes(voc):
    for name in (f"voc:{voc}", f"voc:{voc.parent}?year=2007&split=trainval"):
        source = open_source(name)
        assert keys_and_labels(source) == [(f"VOC2007/JPEGImages/{n}.jpg", -1) for n in ("000005", "000007", "000012")]
        assert source.classes is None and source.categories == VOC_NAMES == sorted(VOC_NAMES)
        expected = {"car": 1, "dog": -1}  # 1 present, 0 (difficult) ignored, -1 absent
        for index in range(3):
            target = source.target(index)
            assert target.shape == (20,) and target.dtype == np.int8
            wanted = {category: expected.get(category, 0) for category in VOC_NAMES}
            wanted |= {"cat": -1} if index == 1 else {}  # its line is missing: ignored, not absent
            assert dict(zip(VOC_NAMES, target.tolist(), strict=True)) == wanted


def test_voc_boxes_are_edges_from_zero(voc):
    source = open_source(f"voc:{voc}")
    found = source.boxes(0)
    assert found.boxes.dtype == np.float32 and found.labels.dtype == np.int64 and found.segments is None
    np.testing.assert_allclose(found.boxes, [[0, 0, 500, 375], [44.7, 9, 60, 20]], rtol=1e-6)
    assert found.labels.tolist() == [VOC_NAMES.index("dog"), 19] and found.difficult.tolist() == [True, False]
    assert source.boxes(1).boxes.shape == (0, 4) and len(source.boxes(1).labels) == 0
    with pytest.raises(UserError, match="000012.xml"):
        source.boxes(2)


@pytest.mark.parametrize(
    "content, words",
    [
        (voc_xml(("", (1, 2, 3, 4), "")), "object 1 has no <name>"),
        (voc_xml(("cat", (1, "wide", 3, 4), "")), "object 1 has no number in <bndbox><ymin> but 'wide'; mend it"),
        (voc_xml(("cat", (1, 2, "nan", 4), "")), "object 1 has no number in <bndbox><xmax> but 'nan'"),
        ("<a><object><name>cat</name></object></a>", "object 1 has no number in <bndbox><xmin> but None"),
        ("<annotation>", "no XML .*; mend it, or unpack it again"),
        (None, "No such file or directory.; each image in the list needs one"),
    ],
)
def test_a_set_of_ones_own_in_vocs_form_hears_what_is_wrong(voc, write_files, content, words):
    if content is None:
        (voc / "VOC2007/Annotations/000005.xml").unlink()
    else:
        write_files(voc, {"VOC2007/Annotations/000005.xml": content})
    with pytest.raises(UserError, match=f"000005.xml: no annotation of VOC.*{words}") as caught:
        open_source(f"voc:{voc}").boxes(0)
    assert "\n" not in str(caught.value)


def test_names_of_ones_own_are_categories(voc, write_files):
    """Sorted, of all splits together, so that train and val count alike; NFC, whatever the file has."""
    write_files(
        voc, {"VOC2007/Annotations/000005.xml": voc_xml(("cat", (1, 2, 3, 4), ""), ("he\u0301lix", (1, 2, 9, 4), ""))}
    )
    write_files(voc, {"VOC2007/Annotations/999999.xml": voc_xml(("zebra", (1, 2, 3, 4), ""))})
    (voc / "VOC2007/Annotations/000012.xml").unlink(missing_ok=True)
    source = open_source(f"voc:{voc}")
    found = source.boxes(0)
    assert source.categories == sorted({"cat", "h\u00e9lix", "zebra"})
    assert [source.categories[label] for label in found.labels] == ["cat", "h\u00e9lix"]
    assert source.target(0).shape == (20,)  # of VOC's own lists


def test_a_tree_of_ones_own_in_vocs_form_hears_what_is_wrong(voc, write_files, refused):
    refused(f"voc:{voc}/VOC2007", "folder of one year; call it VOC2007, and give the one around it")
    write_files(voc, {"VOC2007/ImageSets/Main/trainval.txt": "photo.001\n"})
    refused(f"voc:{voc}", "'photo.001' is no image id; a line is one id of letters, digits")
    write_files(voc, {"VOC2007/ImageSets/Main/trainval.txt": "one\n", "VOC2007/JPEGImages/one.png": b"x"})
    refused(f"voc:{voc}", "one.png: images of VOC end in .jpg; make them JPEGs")


@pytest.mark.parametrize(
    "damage",
    ["<annotation>", voc_xml(("cat", ("x", 1, 1, 1), "")), "<a><object/></a>"],
)
def test_voc_damaged_annotations(voc, write_files, damage):
    write_files(voc, {"VOC2007/Annotations/000005.xml": damage})
    with pytest.raises(UserError, match="000005.xml: no annotation of VOC"):
        open_source(f"voc:{voc}").boxes(0)


def test_voc_years_follow_each_other(voc):
    source = open_source(f"voc:{voc}?year=07+12")
    assert [key for key, _ in keys_and_labels(source)][2:] == [
        "VOC2007/JPEGImages/000012.jpg",
        "VOC2012/JPEGImages/2008_000002.jpg",
    ]
    assert source.target(3)[VOC_NAMES.index("car")] == 1 and source.target(3)[VOC_NAMES.index("cat")] == 0


def test_voc_refusals(voc, write_files, refused):
    refused(f"voc:{voc}?year=2008", "'2008'")
    refused(f"voc:{voc}?split=test", "test.txt", "does not exist")
    source = open_source(f"voc:{voc}")
    file = "VOC2007/ImageSets/Main/sofa_trainval.txt"
    for line in ("000005 2", "999999 1", "000005"):
        write_files(voc, {file: f"{line}\n"})
        with pytest.raises(UserError, match="sofa_trainval.txt"):
            source.target(0)
    (voc / file).unlink()
    with pytest.raises(UserError, match="sofa_trainval.txt: does not exist"):
        source.target(0)
    write_files(voc, {"VOC2007/ImageSets/Main/trainval.txt": "../../../x\n"})
    refused(f"voc:{voc}", "'../../../x' is no image id")


# segmentation


def mask(values, mode="P"):
    image = Image.fromarray(np.array(values, np.uint8))
    if mode == "P":  # as published: indices, shown in colours
        image.putpalette([(7 * n) % 256 for n in range(768)])
    buffer = io.BytesIO()
    image.convert("RGB" if mode == "RGB" else image.mode).save(buffer, "PNG")
    return buffer.getvalue()


def test_voc12aug_takes_masks_from_two_folders(tmp_path, write_files, encode):
    root = tmp_path / "VOCdevkit/VOC2012"
    lists = {"train": ["b", "a"], "aug": ["d", "c"], "val": ["c"]}
    write_files(root, {f"JPEGImages/{n}.jpg": encode(ord(n) - 96) for n in "abcd"})
    write_files(root, {f"ImageSets/Segmentation/{split}.txt": "\n".join(ids) for split, ids in lists.items()})
    write_files(root, {f"SegmentationClass/{n}.png": mask([[1, 255], [0, ord(n)]]) for n in "abc"})
    write_files(root, {f"SegmentationClassAug/{n}.png": mask([[2, 255], [0, ord(n)]], "L") for n in "abcd"})
    source = open_source(f"voc12aug:{tmp_path}/VOCdevkit")
    assert keys_and_labels(source) == [(f"JPEGImages/{n}.jpg", -1) for n in "badc"]
    assert source.categories[:2] == ["background", "aeroplane"] and len(source.categories) == 21
    for index, (first, name) in enumerate([(1, "b"), (1, "a"), (2, "d"), (2, "c")]):
        assert (
            source.target(index).tolist() == [[first, 255], [0, ord(name)]] and source.target(index).dtype == np.uint8
        )
    val = open_source(f"voc12aug:{tmp_path}?split=val")
    assert len(val) == 1 and val.target(0)[0, 0] == 1
    write_files(root, {"SegmentationClass/c.png": mask([[1]], "RGB")})
    with pytest.raises(UserError, match="c.png: no readable mask"):
        val.target(0)
    (root / "SegmentationClass/c.png").unlink()
    with pytest.raises(UserError, match="c.png: does not exist"):
        val.target(0)


def test_masks_have_the_limit_of_images(tmp_path, write_files, monkeypatch):
    write_files(tmp_path, {"mask.png": mask(np.zeros((40, 30)))})
    monkeypatch.setattr("headrace.pipelines.images.decode.rules", lambda: Rules(max_pixels=1199))
    with pytest.raises(UserError, match="mask.png: 30x40 pixels, .*max_pixels"):
        read_mask(tmp_path / "mask.png")
    monkeypatch.undo()
    assert read_mask(tmp_path / "mask.png").shape == (40, 30)
    with pytest.raises(DecodeError, match="300000x300000 pixels"):  # run lengths of what an annotation file claims
        decoded({"counts": [0, 9 * 10**10], "size": [300_000, 300_000]}, 300_000, 300_000)


def test_cityscapes(tmp_path, write_files, encode, refused):
    names = ["ulm/ulm_000000_000019", "aachen/aachen_000001_000019"]
    write_files(tmp_path, {f"leftImg8bit/train/{n}_leftImg8bit.png": encode(i, "PNG") for i, n in enumerate(names)})
    write_files(tmp_path, {f"gtFine/train/{names[0]}_gtFine_labelTrainIds.png": mask([[0, 18, 255]], "L")})
    every = np.arange(256, dtype=np.uint8).reshape(1, -1)
    write_files(tmp_path, {f"gtFine/train/{names[1]}_gtFine_labelIds.png": mask(every, "L")})
    source = open_source(f"cityscapes:{tmp_path}")
    assert [key for key, _ in keys_and_labels(source)] == [f"{n}_leftImg8bit.png" for n in reversed(names)]
    assert source.target(1).tolist() == [[0, 18, 255]]
    ids = {"road": 7, "sidewalk": 8, "pole": 17, "traffic_light": 19, "sky": 23, "bus": 28, "train": 31, "bicycle": 33}
    table = source.target(0)[0]
    assert {name: source.categories[table[number]] for name, number in ids.items()} == {name: name for name in ids}
    assert sorted(table[table != 255].tolist()) == list(range(19)) and table[0] == 255
    refused(f"cityscapes:{tmp_path}?split=val", "leftImg8bit/val")


# COCO


@pytest.fixture
def coco(tmp_path, write_files, encode):
    names = [f"{n:012d}.jpg" for n in (9, 25, 30)]
    write_files(tmp_path, {f"train2017/{name}": encode(n) for n, name in enumerate(names)})
    polygon, runs = [[1.5, 2, 3, 4, 5, 6]], {"counts": [1, 2], "size": [3, 1]}
    content = {
        "images": [{"id": 30, "file_name": names[2]}, {"id": 9, "file_name": names[0]}],
        "annotations": [
            {"id": 1, "image_id": 30, "category_id": 90, "bbox": [1, 2, 3.5, 4], "iscrowd": 0, "segmentation": polygon},
            {"id": 2, "image_id": 9, "category_id": 1, "bbox": [0, 0, 9, 8], "iscrowd": 1, "segmentation": runs},
            {"id": 3, "image_id": 30, "category_id": 13, "bbox": [5, 5, 1, 1], "iscrowd": 0, "segmentation": []},
        ],
        "categories": [{"id": 90, "name": "toothbrush"}, {"id": 1, "name": "person"}, {"id": 13, "name": "stop sign"}],
    }
    return tmp_path, content, names


def test_coco(coco, write_files):
    root, content, names = coco
    source = open_source(f"coco:{root}")
    assert keys_and_labels(source) == [(name, -1) for name in names] and source.classes is None  # no annotations needed
    write_files(root, {"annotations/instances_train2017.json": json.dumps(content)})
    assert source.categories == ["person", "stop sign", "toothbrush"] and source.category_ids.tolist() == [1, 13, 90]
    assert source.image_ids.tolist() == [9, -1, 30]
    crowd, nothing, two = (source.boxes(i) for i in range(3))
    assert (
        crowd.boxes.tolist() == [[0, 0, 9, 8]] and crowd.difficult.tolist() == [True] and crowd.labels.tolist() == [0]
    )
    assert crowd.segments == [{"counts": [1, 2], "size": [3, 1]}]
    assert nothing.boxes.shape == (0, 4) and nothing.segments == []
    assert two.boxes.tolist() == [[1, 2, 4.5, 6], [5, 5, 6, 6]] and two.labels.tolist() == [2, 1]
    assert two.segments == [[[1.5, 2, 3, 4, 5, 6]], []] and two.boxes.dtype == np.float32
    assert pickle.loads(pickle.dumps(source)).boxes(2).labels.tolist() == [2, 1]


def test_coco_refusals(coco, write_files, refused):
    root, content, _ = coco
    source = open_source(f"coco:{root}")
    refused(f"coco:{root}?split=val", "val2017")
    with pytest.raises(UserError, match="annotations"):
        source.boxes(0)
    file = "annotations/instances_train2017.json"
    write_files(root, {file: json.dumps(content | {"images": [{"id": 1, "file_name": "1.jpg"}]})})
    with pytest.raises(UserError, match="1 images .* missing, e.g. 1.jpg"):
        source.boxes(0)
    write_files(root, {file: json.dumps(content | {"categories": []})})
    with pytest.raises(UserError, match="KeyError"):
        source.boxes(0)


# cue conflict


def test_cue_conflict(tmp_path, write_files, encode, refused):
    names = ["cat/cat1-bear2.png", "airplane/airplane10-truck3.png", "truck/truck1-truck2.png"]
    write_files(tmp_path, {name: encode(n, "PNG") for n, name in enumerate(names)})
    source = open_source(f"cue_conflict:{tmp_path}")
    assert keys_and_labels(source) == [(names[1], 0), (names[0], 7), (names[2], 15)]  # of 16, though three are here
    assert [source.texture(i) for i in range(3)] == [15, 1, 15] and source.classes == CATEGORIES == sorted(CATEGORIES)
    for bad in ("cat/cat1.png", "dog/dog1-unicorn2.png", "unicorn/unicorn1-dog2.png"):
        write_files(tmp_path, {bad: b""})
        refused(f"cue_conflict:{tmp_path}", bad)
        (tmp_path / bad).unlink()


def test_cue_conflict_categories_in_imagenet():
    counts = [1, 4, 2, 49, 5, 7, 3, 6, 4, 3, 109, 2, 2, 1, 1, 8]
    assert [len(IMAGENET_CLASSES[category]) for category in CATEGORIES] == counts
    every = [label for labels in IMAGENET_CLASSES.values() for label in labels]
    assert len(set(every)) == len(every) == 207 and max(every) == 914
    dogs = set(range(152, 269)) - {192, 204, 227, 242, 251, 258, 260, 264}
    assert set(IMAGENET_CLASSES["dog"]) == dogs and IMAGENET_CLASSES["bird"][:3] == [8, 10, 11]


# ADE20K


def test_ade20k(tmp_path, write_files, encode, refused):
    names = ["ADE_train_00000001", "ADE_train_00000002"]
    write_files(tmp_path, {f"images/training/{n}.jpg": encode(i) for i, n in enumerate(names)})
    write_files(tmp_path, {f"annotations/training/{n}.png": mask([[0, 1, 150]], "L") for n in names})
    source = open_source(f"ade20k:{tmp_path}")
    assert [key for key, _ in keys_and_labels(source)] == [f"{n}.jpg" for n in names]
    assert source.target(1).tolist() == [[255, 0, 149]] and source.categories[149] == "150"
    rows = "".join(f"{n}\t0.1\t1\t1\t0\tthing {n}, object\n" for n in range(1, 151))
    write_files(tmp_path, {"objectInfo150.txt": "Idx\tRatio\tTrain\tVal\tStuff\tName\n" + rows})
    assert open_source(f"ade20k:{tmp_path}").categories[::149] == ["thing 1", "thing 150"]
    write_files(tmp_path, {"objectInfo150.txt": "Idx\n" + rows[:100]})
    refused(f"ade20k:{tmp_path}", "classes, not 150")
    refused(f"ade20k:{tmp_path}?split=validation", "images/validation")
