"""What is shown is what training gets: pixels against the oracle, captions and outlines against what was drawn."""

import itertools
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from html_pages import Page, picture
from PIL import Image

from headrace.errors import UserError
from headrace.models.algorithms import find_algorithm
from headrace.pipelines.order import Order
from headrace.pipelines.sources import open_source
from headrace.pipelines.spec import (
    InputSpec,
    RandAugment,
    RandomErasing,
    SharedMask,
    TargetBlocksMask,
    VariedMask,
    ViewSpec,
)
from headrace.pipelines.views.draw import draw_views
from headrace.pipelines.views.masks import draw_mask
from headrace.pipelines.views.randaugment import NAMES
from headrace.pipelines.views.recipes import VIEWS
from headrace.pipelines.views.reference import reference_views
from headrace.tools.look.browse import browse, main
from headrace.tools.look.samples import GREY, describe, first_batch, first_samples, to_pixels
from headrace.train.recipe.recipe import load_recipe

RECIPES = {
    "mae_vit-tiny": ["algorithm.view.size=64", "algorithm.backbone.patch_size=16", "train.seed=5"],
    "simclr_resnet18": ["algorithm.view.size=48", "train.seed=5"],
}
PARTS = ("brightness ×", "contrast ×", "saturation ×", "hue ")


def inputs_of(recipe):
    config = load_recipe(recipe, RECIPES[recipe]).algorithm
    return find_algorithm(config.name)(config).inputs()


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_page_shows_the_oracles_pixels_boxes_and_parameters(recipe, photo_folder, tmp_path):
    source, inputs, epoch = open_source(photo_folder), inputs_of(recipe), 3
    sheet, file = browse(str(photo_folder), recipe, RECIPES[recipe], tmp_path, samples=4, epoch=epoch)
    page = Page(file.read_text())
    order = Order(len(source), 8, seed=5)  # any batch size starts an epoch with the same samples
    ids = order.ids(epoch * order.steps_per_epoch)[:4]
    assert [text for _, text in page.all("h2")] == [source.key(i) for i in ids.tolist()]
    sizes = torch.tensor([Image.open(photo_folder / source.key(i)).size[::-1] for i in ids.tolist()])
    (view,) = inputs.views
    params = draw_views(inputs, 5, epoch, ids, sizes)[view.name]
    mean, std = (np.array(values)[:, None, None] for values in (view.mean, view.std))
    oracle = 255 * (reference_views(source, inputs, 5, epoch, ids)[view.name].numpy() * std + mean)
    oracle = oracle.transpose(0, 1, 3, 4, 2)
    mask = draw_mask(inputs.mask, 5, epoch, ids) if inputs.mask else None

    shown = [picture(attributes["src"]) for attributes, _ in page.all("img")]
    masked, plain = shown[1::2], shown[:: 2 if mask else 1]
    captions = [text for _, text in page.all("figure") if not text.startswith("whole")][:: 2 if mask else 1]
    outlines = [a for a, _ in page.all("rect") if a["class"] == "crop"]
    assert len(plain) == len(captions) == len(outlines) == 4 * view.count
    for place, (pixels, caption, outline) in enumerate(zip(plain, captions, outlines)):
        sample, copy = divmod(place, view.count)
        # the resize may differ by one level, which contrast and saturation of up to 1.8 enlarge
        assert np.quantile(np.abs(pixels - oracle[copy, sample]), 0.99) <= 2
        assert np.abs(pixels - oracle[copy, sample]).mean() < 0.6
        box = params.crop[copy, sample].tolist()
        assert [int(outline[key]) for key in ("x", "y", "width", "height")] == box
        for line in describe(view, params, copy, sample, tuple(sizes[sample].tolist())):
            assert line in caption
        if mask:
            hidden = mask.hidden[sample].view(4, 4).repeat_interleave(16, 0).repeat_interleave(16, 1).numpy()
            assert (masked[sample][hidden] == GREY).all() and np.array_equal(masked[sample][~hidden], pixels[~hidden])
    for (_, text), index, (height, width) in zip(page.all("article"), ids.tolist(), sizes.tolist()):
        assert f"sample {index}, {width} × {height} px, label {source.classes[source.label(index)]}" in text
    with Image.open(sheet) as image:
        assert image.width > 700 and np.asarray(image.convert("L")).std() > 20


def test_the_page_asks_for_nothing(photo_folder, tmp_path):
    page = browse(str(photo_folder), "simclr_resnet18", RECIPES["simclr_resnet18"], tmp_path, samples=2)[1].read_text()
    assert "//" not in re.sub(r"data:image/\w+;base64,[\w+/=]+", "", page)
    uris = [
        value for _, attributes, _ in Page(page).found for name, value in attributes.items() if name in ("src", "href")
    ]
    assert len(uris) == 2 * 3 and all(uri.startswith("data:image/") for uri in uris)
    assert "<script" not in page and "url(" not in page and "@import" not in page


def test_names_in_a_data_set_are_text_not_markup(photo_folder, tmp_path):
    name = "<b>&amp;"
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / f"{name}.jpg").write_bytes((photo_folder / "class_0" / "photo_00.jpg").read_bytes())
    page = browse(str(tmp_path / "in"), "mae_vit-tiny", RECIPES["mae_vit-tiny"], tmp_path / "out")[1]
    assert [text for _, text in Page(page.read_text()).all("h2")] == [f"{name}.jpg"]


def read_caption(lines):
    """What a caption says, as numbers."""
    left, top, width, height = (
        int(x)
        for x in re.fullmatch(r"crop (\d+) × (\d+) at \((\d+), (\d+)\), \d+% of the area", lines[0]).group(3, 4, 1, 2)
    )
    told = {"crop": [left, top, width, height], "jitter": []}
    for line in lines[1:]:
        if "→" in line or line.startswith(tuple(part.replace(" ", "\u00a0") for part in PARTS)):
            for word in line.replace("\u00a0", " ").split(" → "):
                operation = next(i for i, part in enumerate(PARTS) if word.startswith(part))
                value = float(word.removeprefix(PARTS[operation]).removesuffix("°"))
                told["jitter"].append((operation, value))
        elif line.startswith("blur"):
            told["sigma"] = float(re.fullmatch(r"blur, sigma ([\d.]+) px", line)[1])
        else:
            told[line] = True
    return told


def test_captions_equal_the_drawn_parameters():
    strong = {key: 0.4 for key in ("brightness", "contrast", "saturation", "hue", "gray", "blur", "solarize")}
    view = ViewSpec(jitter=0.6, **strong)
    sizes = torch.tensor([[300, 400]]).repeat(50, 1)
    params = draw_views(InputSpec((view,)), 1, 0, torch.arange(50), sizes)[view.name]
    seen = set()
    for sample in range(50):
        told = read_caption(describe(view, params, 0, sample, (300, 400)))
        seen |= set(told)
        assert told["crop"] == params.crop[0, sample].tolist()
        for word, drawn in (("flipped", params.flip), ("grayscale", params.gray), ("solarised", params.solarize)):
            assert told.get(word, False) == bool(drawn[0, sample])
        assert told.get("sigma", 0.0) == pytest.approx(params.sigma[0, sample].item(), abs=0.006)
        order = params.order[0, sample].tolist()
        assert [operation for operation, _ in told["jitter"]] == [o for o in order if o >= 0]
        for operation, value in told["jitter"]:
            drawn = params.jitter[0, sample, operation].item()
            assert value == pytest.approx(
                360 * drawn if operation == 3 else drawn, abs=0.51 if operation == 3 else 0.006
            )
    assert seen == {"crop", "jitter", "flipped", "grayscale", "solarised", "sigma"}  # each was tried


def test_a_bad_image_is_replaced_as_in_training(photo_folder, tmp_path):
    for index, path in enumerate(sorted(photo_folder.rglob("*.jpg"))[:6]):
        data = path.read_bytes()
        (tmp_path / f"{index}.jpg").write_bytes(data[:200] if index == 2 else data)
    inputs = inputs_of("mae_vit-tiny")
    keys = [sample.key for sample in first_samples(open_source(tmp_path), inputs, 6, seed=0)]
    assert len(keys) == 6 and "2.jpg" not in keys and set(keys) == {f"{i}.jpg" for i in (0, 1, 3, 4, 5)}


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["{photos}", "mae_vit-tinny"], "did you mean mae_vit-tiny?"),
        (["{photos}z", "mae_vit-tiny"], "photos"),
        (["{photos}", "mae_vit-tiny", "algorithm.view.sizee=3"], "did you mean size?"),
        (["{photos}"], "needs a recipe or --views"),
        (["{photos}", "mae_vit-tiny", "--views", "simclr"], "one of the two"),
        (["{photos}", "mae_vit-tiny", "--mask", "block"], "--mask: belongs to --views"),
        (["{photos}", "--views", "byol.third"], "did you mean byol.first?"),
        (
            ["{photos}", "--views", "dino_cifar.small", "--mask", "targets"],
            "--mask: targets does not fit a view of 16 px",
        ),
        (["{photos}", "mae_vit-tiny", "--samples", "0"], "--samples: from 1 to 100"),
        (["{photos}", "mae_vit-tiny", "--epoch", "-1"], "--epoch"),
        (["{photos}", "mae_vit-tiny", "--out", "{file}"], "--out: "),
    ],
)
def test_mistakes_end_in_one_line(arguments, words, photo_folder, tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(UserError) as caught:
        main([argument.format(photos=photo_folder, file=file) for argument in arguments])
    assert words in str(caught.value) and "\n" not in str(caught.value)


def tiles_of(photo_folder, views, mask=None):
    inputs = InputSpec(views, mask)
    source = open_source(photo_folder)
    return inputs, first_batch(source, inputs, 3, seed=2), first_samples(source, inputs, 3, seed=2)


def test_parts_and_copies_are_all_shown(photo_folder):
    patches = ViewSpec("patches", crop="window", size=96, resize=120, squash=True, parts="patches", count=2, flip=1.0)
    turns = ViewSpec("turns", size=48, parts="rotations")
    inputs, batch, samples = tiles_of(photo_folder, (patches, turns))
    for row, sample in enumerate(samples):
        shown = [to_pixels(batch.views[v.name][c, row], v).numpy() for v in inputs.views for c in range(v.copies)]
        assert len(sample.tiles) == 18 + 4 and len(sample.boxes) == 18 + 1
        assert all(np.array_equal(tile.pixels, pixels) for tile, pixels in zip(sample.tiles, shown))
        assert [tile.title for tile in sample.tiles[9:11]] == ["patches 2, centre", "patches 2, top left"]
        assert [tile.title for tile in sample.tiles[18:]] == [f"turns, {90 * k}°" for k in range(4)]
        assert [tile.crop for tile in sample.tiles] == [*range(18), 18, 18, 18, 18]
        # a patch is what its outline surrounds, mirrored by the flip, up to the squash to 120 px
        whole = Image.fromarray(sample.whole)
        for tile in sample.tiles[:18]:
            left, top, width, height = sample.boxes[tile.crop]
            seen = np.asarray(whole.crop((left, top, left + width, top + height)).resize((11, 11)))[:, ::-1]
            assert np.abs(seen.astype(int) - tile.pixels).mean() < 12


def test_windows_are_outlined_where_they_were_taken(photo_folder):
    view = ViewSpec(crop="window", size=32, resize=40, padding=2, flip=0.0)
    _, batch, samples = tiles_of(photo_folder, (view,))
    for sample in samples:
        (left, top, width, height), scale = sample.boxes[0], min(sample.width, sample.height) / 40
        assert width == pytest.approx(32 * scale, abs=3) and height == pytest.approx(32 * scale, abs=3)
        seen = Image.fromarray(sample.whole).crop((left, top, left + width, top + height)).resize((32, 32))
        assert np.abs(np.asarray(seen)[3:-3, 3:-3].astype(int) - sample.tiles[0].pixels[3:-3, 3:-3]).mean() < 6
        assert re.fullmatch(r"window at \(-?\d+, -?\d+\) of the image at \d+ × \d+", sample.tiles[0].lines[0])


@pytest.mark.parametrize("mask", [SharedMask(grid=(4, 4)), TargetBlocksMask(grid=(8, 8), kept=8), VariedMask((8, 8))])
def test_masks_cover_what_is_hidden(mask, photo_folder):
    views = (ViewSpec(size=64), ViewSpec("target", size=32, draws="image"), ViewSpec("odd", size=50))
    _, batch, samples = tiles_of(photo_folder, views, mask)
    for row, sample in enumerate(samples):
        assert [tile.title for tile in sample.tiles] == ["image", "image, masked", "target", "target, masked", "odd"]
        hidden = batch.mask.hidden[row % len(batch.mask.hidden)].view(mask.grid)
        predicted = torch.zeros(mask.patches, dtype=torch.bool)
        if batch.mask.targets is not None:
            predicted[batch.mask.targets[row].flatten()] = True
        for plain, masked in (sample.tiles[:2], sample.tiles[2:4]):
            side = plain.pixels.shape[0] // mask.grid[0]
            for y, x in itertools.product(range(mask.grid[0]), range(mask.grid[1])):
                place = (slice(side * y, side * (y + 1)), slice(side * x, side * (x + 1)))
                seen, before = masked.pixels[place], plain.pixels[place]
                if predicted.view(mask.grid)[y, x]:
                    assert (seen != GREY).any() and not np.array_equal(seen, before)
                else:
                    assert (seen == GREY).all() if hidden[y, x] else np.array_equal(seen, before)
            assert f"{int(hidden.sum())} of {mask.patches} patches hidden" in masked.lines[0]


def test_captions_of_rare_views():
    view = ViewSpec(size=64, rotate=5.0, randaugment=RandAugment(chance=1.0), erasing=RandomErasing(chance=1.0))
    view = replace(view, gray=1.0, gray_first=True, jitter=1.0, brightness=0.4)
    params = draw_views(InputSpec((view,)), 1, 0, torch.arange(30), torch.tensor([[80, 90]]).repeat(30, 1))["image"]
    for sample in range(30):
        lines = describe(view, params, 0, sample, (80, 90))
        if params.flip[0, sample]:
            assert lines.pop(1) == "flipped"
        assert lines[1] == f"turned by {params.angle[0, sample]:+.1f}°"
        for line, (operation, magnitude) in zip(lines[2:4], params.policy[0, sample].tolist()):
            name = NAMES[int(operation)].replace("_", " ")
            assert line == name or line == f"{name} {magnitude:+.2f}"
        assert lines[4] == "grayscale" and lines[5].startswith("brightness")
        left, top, width, height = params.erased[0, sample].tolist()
        assert lines[6:] == [f"erased {width} × {height} at ({left}, {top})"]


@pytest.mark.parametrize("name", VIEWS)
def test_every_named_view_can_be_looked_at(name, photo_folder, tmp_path):
    page = browse(str(photo_folder), None, [], tmp_path, samples=1, views=name)[1].read_text()
    assert len(Page(page).all("img")) == sum(view.copies for view in VIEWS[name])


def test_named_views_with_a_mask(photo_folder, tmp_path):
    main([str(photo_folder), "--views", "beit", "--mask", "block", "--samples", "1", "--out", str(tmp_path)])
    page = Page((tmp_path / "browse.html").read_text())
    facts = [text for _, text in page.all("dd")]
    assert facts[1] == "beit" and facts[3:] == [
        "1 × image at 224 px, 1 × target at 112 px",
        "block, 75 of 14 × 14 patches",
    ]
    plain, masked, _, target = (picture(attributes["src"]) for attributes, _ in page.all("img"))
    hidden = (masked == GREY).all(2).reshape(14, 16, 14, 16).all((1, 3))
    assert hidden.sum() >= 75 and np.array_equal(
        plain[~hidden.repeat(16, 0).repeat(16, 1)], masked[~hidden.repeat(16, 0).repeat(16, 1)]
    )
    assert (target[hidden.repeat(8, 0).repeat(8, 1)] == GREY).all()
