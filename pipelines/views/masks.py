"""MaskSpec + (seed, epoch, ids) -> Mask, drawn on the device the batch lives on, the same on every device.

A mask depends on its own sample alone; a `SharedMask` on the first sample of the batch, and how much a `CropMask` hides
on the place of the batch in its run. Where every sample hides as
many patches, kept and hidden ones are each listed in raster order: that changes nothing for an encoder and makes its
gathers local.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from ...errors import UserError
from ..rng import drawer, of_rows, random_words, uniform
from ..spec import (
    BlockMask,
    CellMask,
    CropMask,
    Mask,
    MaskSpec,
    Place,
    PublishedBlocksMask,
    RandomMask,
    SharedMask,
    TargetBlocksMask,
    VariedMask,
    WeightedMask,
)

_ROUNDS, _CANDIDATES = (
    32,
    48,
)  # of the block-wise rule: blocks that are accepted one after another, places tried for each
_TRIES = 10  # places tried for a rectangle of a `CropMask`
_LARGEST = 1 - 2**-24  # the largest float32 below 1


def draw_mask(
    spec: MaskSpec, seed: int, epoch: int | torch.Tensor, ids: torch.Tensor, place: Place | None = None
) -> Mask:
    """Masks for sample ids (B,) int64, on the device of `ids`; all shapes are known beforehand.

    `epoch`: of all samples, or (B,) int64 of each. `place`: by default these samples are the global batch of step 0.

    Raises `TypeError` for a rule that has no `scores` and is none of ours.
    """
    if type(spec).scores is not MaskSpec.scores:
        return _by_scores(spec, seed, epoch, ids)
    if isinstance(spec, WeightedMask):
        noise = uniform(seed, "mask", epoch, ids, spec.patches).float().clamp(max=_LARGEST)
        return weighted_mask(torch.ones_like(noise), noise, spec.hidden)
    if isinstance(spec, RandomMask):
        return _finish(_highest(random_words(seed, "mask", epoch, ids, spec.patches), spec.hidden), spec.hidden)
    if isinstance(spec, CellMask):
        return _finish(_cells(spec, seed, epoch, ids), spec.hidden)
    if isinstance(spec, BlockMask):
        counts = torch.full_like(ids, spec.count)
        largest = spec.count if spec.max_block is None else spec.max_block
        hidden = _blocks(spec.grid, counts, spec.min_block, largest, spec.min_aspect, seed, epoch, ids)
        return _finish(hidden, spec.count)
    if isinstance(spec, VariedMask):
        return Mask(_varied(spec, seed, epoch, ids))
    if isinstance(spec, SharedMask):
        if not spec.per_sample:
            ids, epoch = ids[:1], of_rows(epoch, slice(1))
        share = spec.ratio + spec.spread * uniform(seed, "mask/share", epoch, ids, 1)
        hidden = _highest(random_words(seed, "mask", epoch, ids, spec.patches), (spec.patches * share).long())
        return Mask(hidden) if spec.hidden is None else _finish(hidden, spec.hidden)
    if isinstance(spec, CropMask):
        return _crops(spec, seed, epoch, ids, place or Place(0, 0, len(ids)))
    if isinstance(spec, TargetBlocksMask):
        return _target_blocks(spec, seed, epoch, ids)
    if isinstance(spec, PublishedBlocksMask):
        return _published_blocks(spec, seed, epoch, ids)
    raise TypeError(f"no rule for {type(spec).__name__}")


def _by_scores(spec: MaskSpec, seed: int, epoch: int, ids: torch.Tensor) -> Mask:
    name = type(spec).__name__
    scores = spec.scores(drawer(seed, [f"mask/{name}"], epoch, ids))
    if scores.shape != (len(ids), spec.patches):
        raise UserError(f"{name}.scores: must give {(len(ids), spec.patches)}, it gave {tuple(scores.shape)}")
    return _finish(_highest(scores, spec.hidden), spec.hidden)


def weighted_mask(importance: torch.Tensor, noise: torch.Tensor, hidden: int) -> Mask:
    """Keeps L - hidden patches of every sample, drawn without replacement with chances in proportion to `importance`.

    importance: (B, L), not negative, more than L - hidden of them positive; noise: (B, L) from `Mask.noise`. Each patch
    waits for an exponential time with its importance as the rate, and the first to come stay visible: the order is that
    of successive draws (Efraimidis and Spirakis 2006).
    """
    waiting = -noise.clamp(min=torch.finfo(torch.float32).tiny).log() / importance.float()
    mask = _finish(_highest(waiting, hidden), hidden)
    mask.noise = noise
    return mask


def _highest(scores: torch.Tensor, count: int | torch.Tensor) -> torch.Tensor:
    """(B, L) bool: the `count` (int, or one a row as (B, 1)) highest scores of each row."""
    rank = scores.argsort(dim=1, stable=True).argsort(dim=1)
    return rank >= scores.shape[1] - count


def _finish(hidden: torch.Tensor, count: int) -> Mask:
    """The mask of (B, L) bool with `count` hidden patches in every row."""
    order = hidden.to(torch.uint8).argsort(dim=1, stable=True)
    return Mask(hidden, keep=order[:, : hidden.shape[1] - count], restore=order.argsort(dim=1))


def _cells(spec: CellMask, seed: int, epoch: int, ids: torch.Tensor) -> torch.Tensor:
    rows, columns = (side // spec.cell for side in spec.grid)
    cells = _highest(random_words(seed, "mask", epoch, ids, rows * columns), spec.hidden // spec.cell**2)
    cells = cells.view(-1, rows, 1, columns, 1).expand(-1, rows, spec.cell, columns, spec.cell)
    return cells.reshape(len(ids), spec.patches)


def _varied(spec: VariedMask, seed: int, epoch: int, ids: torch.Tensor) -> torch.Tensor:
    """iBOT's rule, whose smallest rectangle has a third of the shorter side as its side."""
    masked, share = uniform(seed, "mask/share", epoch, ids, 2).unbind(1)
    low, high = spec.ratio
    counts = torch.where(masked < spec.chance, (spec.patches * (low + share * (high - low))).long(), 0)
    smallest = max(1, (min(spec.grid) // 3) ** 2)
    return _blocks(spec.grid, counts, smallest, spec.patches, 0.3, seed, epoch, ids)


def crop_counts(spec: CropMask, seed: int, step: int, samples: int) -> torch.Tensor:
    """(samples, crops) int64 on the CPU: how many patches each crop of the global batch of a step hides."""
    crops = torch.arange(samples * spec.crops)
    low, high = spec.ratio
    u = uniform(seed, "mask/deal", step, crops, 2)
    if spec.deal == "drawn":
        counts = torch.where(u[:, 0] < spec.chance, (spec.patches * (low + u[:, 1] * (high - low))).long(), 0)
    else:
        masked = int(spec.chance * len(crops))
        edges = torch.linspace(low, high, masked + 1, dtype=torch.float64)
        shares = edges[1:]
        if spec.deal == "between":
            shares = edges[:-1] + u[:masked, 1] * edges.diff()
        counts = torch.zeros_like(crops)
        counts[:masked] = (spec.patches * shares).long()
        counts = counts[u[:, 0].argsort(stable=True)]
    return counts.view(samples, spec.crops)


def _crops(spec: CropMask, seed: int, epoch, ids: torch.Tensor, place: Place) -> Mask:
    counts = crop_counts(spec, seed, place.step, place.samples)[place.first : place.first + len(ids)]
    largest = int(spec.max_share * spec.patches)
    rule = {"tries": _TRIES, "complete": spec.complete, "epoch": epoch, "ids": ids, "seed": seed}
    wanted = counts.to(ids.device, non_blocking=True)
    hidden = [
        _blocks(spec.grid, own, spec.min_block, largest, spec.min_aspect, stream=f"mask/{crop}", **rule)
        for crop, own in enumerate(wanted.unbind(1))
    ]
    hidden = torch.stack(hidden, dim=1)
    return Mask(hidden, counts=(counts if spec.complete else hidden.sum(2).cpu()).numpy())


def _blocks(
    grid, counts, smallest, largest, aspect, seed, epoch, ids, *, stream="mask", tries=None, complete=True
) -> torch.Tensor:
    """(B, L) bool with counts (B,) hidden patches, by BEiT's rule (arXiv 2106.08254, algorithm 1).

    Until the count is reached: a rectangle with an area ~ U(smallest, what is still to hide, at most `largest`), bounds
    in either order, and a shape log-uniform in [aspect, 1 / aspect], smaller than the grid both ways and anywhere in
    it, is hidden if it adds one patch or more, and not more than that. So many rectangles are tried at once that the
    first acceptable one is nearly always among them; what is missing after the last round is hidden patch by patch.
    With `tries` only so many are tried for each, and none after that; without `complete` the rest is left visible.
    """
    rows, columns = grid
    hidden = torch.zeros(len(ids), rows, columns, dtype=torch.bool, device=ids.device)
    counts, candidates = counts[:, None], tries or _CANDIDATES
    going = torch.ones_like(hidden[:, :1, :1])
    for turn in range(_ROUNDS):  # the last of 2,000 masks of BEiT takes 12
        left = counts - hidden.sum((1, 2))[:, None]
        if ids.device.type == "cpu" and not left.any():  # elsewhere, looking would cost more than the rounds
            break
        budget = left.clamp(max=largest)
        u = uniform(seed, f"{stream}/{turn}", epoch, ids, 4 * candidates).unflatten(1, (4, candidates))
        area = smallest + u[:, 0] * (budget - smallest)
        shape = (math.log(aspect) * (1 - 2 * u[:, 1])).exp()
        high, wide = (area * shape).sqrt().round().long(), (area / shape).sqrt().round().long()
        fits = (high < rows) & (wide < columns)
        high, wide = torch.where(fits, high, 0), torch.where(fits, wide, 0)
        top, start = (u[:, 2] * (rows - high + 1)).long(), (u[:, 3] * (columns - wide + 1)).long()
        block = _first_block(hidden, top, start, top + high, start + wide, budget)
        if tries:
            block &= going
            going = block.flatten(1).any(1)[:, None, None]
        hidden |= block
    hidden = hidden.flatten(1)
    if not complete:
        return hidden
    scores = uniform(seed, f"{stream}/rest", epoch, ids, rows * columns) + hidden
    return _highest(scores, counts)


def _first_block(hidden, top, start, bottom, end, budget) -> torch.Tensor:
    """(B, rows, columns) bool: the first of the rectangles (B, N) that adds 1 to budget (B, 1) patches, if any does."""
    rows, columns = hidden.shape[1:]
    sums = F.pad(hidden.long().cumsum(1).cumsum(2), (1, 0, 1, 0)).flatten(1)  # hidden above and left of each corner
    inside = sum(
        sign * sums.gather(1, y * (columns + 1) + x)
        for sign, y, x in ((1, bottom, end), (-1, top, end), (-1, bottom, start), (1, top, start))
    )
    fresh = (bottom - top) * (end - start) - inside
    good = (fresh > 0) & (fresh <= budget)
    first = good.to(torch.uint8).argmax(1, keepdim=True)
    top, start, bottom, end = (edge.gather(1, first)[..., None] for edge in (top, start, bottom, end))
    row, column = torch.arange(rows, device=hidden.device)[:, None], torch.arange(columns, device=hidden.device)
    block = (row >= top) & (row < bottom) & (column >= start) & (column < end)
    return block & good.any(1)[:, None, None]


def _target_blocks(spec: TargetBlocksMask, seed: int, epoch: int, ids: torch.Tensor) -> Mask:
    rows, columns = spec.grid
    u = uniform(seed, "mask/blocks", epoch, ids, 2 * (spec.targets + 1)).view(len(ids), -1, 2)
    targets = _rectangles(spec.grid, spec.target_shape, u[:, 1:])
    context = _rectangles(spec.grid, spec.context_shape, u[:, :1])[:, 0]
    batch = torch.arange(len(ids), device=ids.device)
    # of patches in no target, those of the context's square come first, in random order
    scores = uniform(seed, "mask", epoch, ids, spec.patches)
    scores[batch[:, None], context] += 1
    scores[batch[:, None], targets.flatten(1)] -= 2
    mask = _finish(~_highest(scores, spec.kept), spec.hidden)
    mask.targets = targets
    return mask


def _published_blocks(spec: PublishedBlocksMask, seed: int, epoch: int, ids: torch.Tensor) -> Mask:
    """Looks at values on the host: the shapes of the result depend on them."""
    u, v = uniform(seed, "mask/sizes", of_rows(epoch, slice(1)), ids[:1], 2)[0].tolist()
    shape = published_shape(spec.grid, _between(spec.target_scale, u), _between(spec.target_ratio, u))
    around = published_shape(spec.grid, _between(spec.context_scale, v), 1.0)
    inner = tuple(side - 1 for side in spec.grid)  # the authors' upper ends are exclusive
    drawn = uniform(seed, "mask/blocks", epoch, ids, 2 * (spec.targets + spec.attempts)).view(len(ids), -1, 2)
    targets, tries = (_rectangles(inner, size, part, spec.grid[1]) for size, part in (
        (shape, drawn[:, : spec.targets]), (around, drawn[:, spec.targets :])
    ))  # fmt: skip
    context = torch.zeros(len(ids), spec.patches, dtype=torch.bool, device=ids.device)
    found = torch.zeros(len(ids), 1, dtype=torch.bool, device=ids.device)
    inside = torch.zeros(len(ids), spec.attempts, spec.patches, dtype=torch.bool, device=ids.device)
    inside.scatter_(2, tries, True)
    for count in range(spec.targets, -1, -1):
        taken = torch.zeros_like(context).scatter_(1, targets[:, :count].flatten(1), True)
        left = inside & ~taken[:, None]
        good = left.sum(2) > spec.least
        first = left[torch.arange(len(ids), device=ids.device), good.to(torch.uint8).argmax(1)]
        context = torch.where(found, context, first)
        found = found | good.any(1, keepdim=True)
    shortest = int(context.sum(1).min())
    mask = _finish(~(context & (context.cumsum(1) <= shortest)), spec.patches - shortest)
    mask.targets = targets
    return mask


def _between(bounds: tuple[float, float], u: float) -> float:
    return bounds[0] + u * (bounds[1] - bounds[0])


def published_shape(grid: tuple[int, int], scale: float, ratio: float) -> tuple[int, int]:
    """Rows and columns of a block: of int(patches x scale) patches, rounded, and less than the grid either way."""
    patches = int(grid[0] * grid[1] * scale)
    rows, columns = round(math.sqrt(patches * ratio)), round(math.sqrt(patches / ratio))
    return min(rows, grid[0] - 1), min(columns, grid[1] - 1)


def _rectangles(
    grid: tuple[int, int], shape: tuple[int, int], u: torch.Tensor, width: int | None = None
) -> torch.Tensor:
    """(B, N, rows * columns) int64 patches, in raster order, of rectangles of one shape at places u (B, N, 2) in a
    grid, of which `width` is a row's, if not its own."""
    width = grid[1] if width is None else width
    top, left = ((u[..., axis] * (grid[axis] - shape[axis] + 1)).long() for axis in (0, 1))
    rows, columns = (torch.arange(side, device=u.device) for side in shape)
    inner = (rows[:, None] * width + columns).flatten()
    return (top * width + left)[..., None] + inner
