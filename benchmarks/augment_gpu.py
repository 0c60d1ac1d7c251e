"""Augmentation on one GPU, ours and others', in one run: ``python -m headrace.benchmarks.augment_gpu``.

SimCLR's colour half (jitter, grayscale, blur, flip, normalise) of crops that are on the GPU, and crops cut there from
decoded photographs. Correctness first: ours and torchvision's against the reference, on the same draws. kornia (if
installed) draws its own; DALI has a fixed order of the jitter and another contrast: they do about the same work, not
the same thing. Prints views per second and appends a row for each to results/augment_gpu.jsonl.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from headrace.kernels.augment import augment, blur_taps
from headrace.kernels.augment.cases import draw as draw_colours
from headrace.kernels.augment.table import COLUMNS
from headrace.kernels.commands import table as as_table
from headrace.kernels.crop_resize import crop_resize
from headrace.kernels.crop_resize.cases import draw as draw_crops

from .record import add_out, append, spread

MEAN, STD, SIGMA = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), (0.1, 2.0)
NORMALIZE = {"mean": MEAN, "std": STD, "sigma_max": SIGMA[1]}


def colours(views: int, size: int) -> tuple[Tensor, Tensor]:
    """Crops and SimCLR's draws for them: every fifth is not jittered, a fifth gray, half blurred, none solarised."""
    pixels, table = draw_colours(views, size, chance=0.2)
    table[::5, 4:8] = -1
    table[:, COLUMNS.index("solarize")] = 0
    return pixels, table


def torchvision_views(pixels: Tensor, rows: list[list[float]]) -> Tensor:
    """Each view by itself, since v2's transforms draw once for a whole batch. `rows`: the table, on the CPU."""
    made = []
    for crop, row in zip(pixels, rows):
        x = tv.to_dtype(crop.permute(2, 0, 1), torch.float32, scale=True)
        drawn = dict(zip(COLUMNS, row))
        for position in ("first", "second", "third", "fourth"):
            if drawn[position] >= 0:
                operation = COLUMNS[int(drawn[position])]
                x = getattr(tv, f"adjust_{operation}")(x, drawn[operation])
        x = tv.rgb_to_grayscale(x, 3) if drawn["gray"] else x
        x = tv.gaussian_blur(x, blur_taps(SIGMA[1]), drawn["sigma"]) if drawn["sigma"] else x
        made.append(tv.normalize(tv.horizontal_flip(x) if drawn["flip"] else x, MEAN, STD))
    return torch.stack(made)


def torchvision_crops(images: list[Tensor], boxes: list[list[int]], size: int) -> Tensor:
    cut = (tv.resized_crop(x, top, left, h, w, [size, size]) for x, (left, top, w, h) in zip(images, boxes))
    return torch.stack(list(cut))


def kornia_views(pixels: Tensor) -> Callable[[], object]:
    import kornia.augmentation as K

    chain = torch.nn.Sequential(
        K.ColorJiggle(0.8, 0.8, 0.8, 0.2, p=0.8),
        K.RandomGrayscale(p=0.2),
        K.RandomGaussianBlur((13, 13), SIGMA, p=0.5),
        K.RandomHorizontalFlip(),
        K.Normalize(torch.tensor(MEAN), torch.tensor(STD)),
    )
    return lambda: chain(pixels.permute(0, 3, 1, 2).float() / 255)


def dali_views(pixels: Tensor, table: Tensor) -> Callable[[], object]:
    import nvidia.dali.fn as fn
    import nvidia.dali.types as types
    from nvidia.dali import pipeline_def

    drawn = {name: column.cpu().numpy() for name, column in zip(COLUMNS, table.clone().unbind(1))}
    drawn["saturation"] = drawn["saturation"] * (1 - drawn["gray"])
    drawn["hue"], drawn["sigma"] = drawn["hue"] * 360, drawn["sigma"].clip(1e-3)

    @pipeline_def(batch_size=len(pixels), num_threads=4, device_id=pixels.device.index or 0, prefetch_queue_depth=1)
    def pipeline():
        def given(name: str):
            return fn.external_source(source=lambda: list(drawn[name]), name=name)

        x = fn.external_source(source=lambda: pixels, device="gpu", layout="HWC", no_copy=True)
        factors = {name: given(name) for name in ("brightness", "contrast", "saturation", "hue")}
        x = fn.gaussian_blur(fn.color_twist(x, **factors), sigma=given("sigma"), window_size=13)
        mirror = fn.cast(given("flip"), dtype=types.INT32)
        scaled = {"mean": [255 * m for m in MEAN], "std": [255 * s for s in STD]}
        return fn.crop_mirror_normalize(x, mirror=mirror, dtype=types.FLOAT16, output_layout="CHW", **scaled)

    made = pipeline()
    made.build()
    return made.run


def timed(function: Callable[[], object], repeat: int, device: str = "cuda") -> dict[str, float]:
    """Milliseconds by the host's clock until the GPU is done: what a loop that waits would see."""
    taken, wait = [], torch.cuda.synchronize if device == "cuda" else lambda: None
    for turn in range(repeat + 3):
        wait()
        began = time.perf_counter()
        function()
        wait()
        if turn >= 3:  # the first compile and warm up
            taken.append(1e3 * (time.perf_counter() - began))
    return spread("ms", taken)


def contenders(
    views: int, size: int, device: str = "cuda"
) -> Iterator[tuple[str, str, Callable[[], Callable[[], object]]]]:
    """(work, who, how to make the function that is timed); what a maker raises is that contender's own affair."""
    ours = {"impl": "triton" if device == "cuda" else "reference"}
    pixels, table = (tensor.to(device) for tensor in colours(views, size))
    rows = table.tolist()
    for dtype in (torch.bfloat16, torch.float32):
        options = {**NORMALIZE, "dtype": dtype, **ours}
        name = f"headrace {str(dtype).removeprefix('torch.')}"
        yield "views", name, lambda options=options: lambda: augment(pixels, table, **options)
    yield "views", "torchvision, a view at a time", lambda: lambda: torchvision_views(pixels, rows)
    yield "views", "kornia, own draws", lambda: kornia_views(pixels)
    yield "views", "DALI, fixed order", lambda: dali_views(pixels, table)
    arguments = [tensor.to(device) for tensor in draw_crops(views, (375, 500), 125)]
    buffer, starts, widths, boxes = arguments
    ends = [*starts.tolist()[1:], len(buffer)]
    spans = zip(starts.tolist(), ends, widths.tolist())
    images = [buffer[start:end].view(-1, width, 3).permute(2, 0, 1) for start, end, width in spans]
    yield "crops", "headrace", lambda: lambda: crop_resize(*arguments, size=size, **ours)
    yield "crops", "torchvision, a crop at a time", lambda: lambda: torchvision_crops(images, boxes.tolist(), size)


def errors(views: int = 48, size: int = 64, device: str = "cuda") -> dict[str, float]:
    """Largest differences to the float64 reference in grey levels, by name."""
    pixels, table = (tensor.to(device) for tensor in colours(views, size))
    exact = augment(pixels, table.double(), impl="reference", **NORMALIZE)
    levels = 255 * torch.tensor(STD, device=device).view(3, 1, 1)
    arguments = [tensor.to(device) for tensor in draw_crops(views, (60, 90), 8)]
    crops, right = (crop_resize(*arguments, size=size, impl=impl).int() for impl in ("triton", "reference"))
    return {
        "headrace": float(((augment(pixels, table, impl="triton", **NORMALIZE) - exact).abs() * levels).max()),
        "torchvision": float(((torchvision_views(pixels, table.tolist()) - exact).abs() * levels).max()),
        "headrace, crops": float((crops - right).abs().max()),
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m headrace.benchmarks.augment_gpu", description=__doc__)
    parser.add_argument("--views", type=int, default=512)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--repeat", type=int, default=30)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: tries the machinery, no more")
    add_out(parser)
    options = parser.parse_args(argv)
    if options.device == "cuda" and not torch.cuda.is_available():
        print("benchmarks.augment_gpu: there is no GPU here", file=sys.stderr)
        return 2
    off = errors() if options.device == "cuda" else {}
    print("largest difference to the reference in grey levels:", ", ".join(f"{k} {v:.3f}" for k, v in off.items()))
    if max(off.values(), default=0) > 1:
        print("benchmarks.augment_gpu: that is more than one; nothing is timed", file=sys.stderr)
        return 1
    rows, shape = [], {"views": options.views, "size": options.size, "error": off}
    for work, who, make in contenders(options.views, options.size, options.device):
        try:
            times = timed(make(), options.repeat, options.device)
        except Exception as fault:  # a contender that is not installed or fails must not end the comparison
            rows.append((work, who, f"{type(fault).__name__}: {str(fault)[:90]}", "", ""))
            continue
        rate = round(1e3 * options.views / times["ms"], 1)
        rows.append((work, who, f"{times['ms']:.3f}", f"{times['p20']:.3f} - {times['p80']:.3f}", f"{rate:,.0f}"))
        row = {"job": work, "contender": who, **times, "views_per_second": rate, "config": shape}
        append("augment_gpu", row, folder=options.out)
    print(as_table(("work", "who", "ms p50", "p20 - p80", "views/s"), rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
