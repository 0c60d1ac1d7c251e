"""Where an encoder looks: ``headrace attention <encoder> <images...>``, a picture for each head."""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass

import torch
from torch import nn

from ...errors import UserError
from ...models.backbones import ViT
from ...models.backbones.hivit import HiViT
from ...models.backbones.windows import WindowEncoder
from .maps import add_arguments, look, overlay, save_values
from .plots import plot_rows

Query = str | tuple[int, int]  # "class", "mean", or the (row, column) of a patch
_HEADS = 16  # shown at most; the .npy has all


@dataclass(frozen=True)
class Attention:
    """Of one block: `weights` (B, heads, N, N), whose rows sum to 1; row i says what token i takes in."""

    weights: torch.Tensor
    grid: tuple[int, int]
    class_token: bool  # token 0, where there is one
    registers: int = 0  # the tokens after it; the others are patches in raster order

    def maps(self, query: Query) -> torch.Tensor:
        """(B, heads, rows, columns): how much of each patch the query takes in.

        The query is the class token, one patch, or the mean of all patches. What goes to the class token and registers
        is in no map, so a map need not sum to 1.
        """
        first = self.class_token + self.registers
        if query == "class":
            rows = self.weights[:, :, 0]
        elif query == "mean":
            rows = self.weights[:, :, first:].mean(2)
        else:
            rows = self.weights[:, :, first + query[0] * self.grid[1] + query[1]]
        return rows[:, :, first:].unflatten(2, self.grid)


@torch.no_grad()
def attention_of(encoder: nn.Module, images: torch.Tensor, block: int = -1) -> Attention:
    """Attention in one block (from 0; -1 is the last) of a ViT or of HiViT's main stage, relative biases included.

    It is computed from the weights and from what the block is given in a forward pass. Raises `UserError` for an
    encoder whose tokens do not all see each other, and for a block that it does not have.
    """
    if not isinstance(encoder, (ViT, HiViT)):
        why = "attends inside windows only" if isinstance(encoder, WindowEncoder) else "is no ViT of headrace"
        raise UserError(f"attention: {type(encoder).__name__} {why}; headrace pca shows maps of its features")
    depth = len(encoder.blocks)
    if not -depth <= block < depth:
        raise UserError(f"--block: from 0 to {depth - 1}, or from -1 for the last, not {block}")
    chosen, found = encoder.blocks[block], []

    def before(_, arguments: tuple) -> None:
        x, *rest = arguments
        found.append(chosen.attention_weights(chosen.norm1(x), *rest))

    hook = chosen.register_forward_pre_hook(before)
    try:
        encoder(images)
    finally:
        hook.remove()
    grid = tuple(side // encoder.patch_size for side in images.shape[-2:])
    registers = getattr(encoder, "registers", None)
    return Attention(found[0], grid, isinstance(encoder, ViT), 0 if registers is None else registers.shape[1])


def query_of(text: str, encoder: nn.Module, grid: tuple[int, int]) -> Query:
    """`auto`: the class token where the encoder's features are its, else the mean. Raises `UserError`."""
    has_class = isinstance(encoder, ViT)
    if text == "auto":
        return "class" if has_class and encoder.pool == "cls" else "mean"
    if text == "class" and not has_class:
        raise UserError(f"--query: {type(encoder).__name__} has no class token; take mean, or a patch such as 3,4")
    if text in ("class", "mean"):
        return text
    place = re.fullmatch(r"(\d+),(\d+)", text)
    if place is None:
        raise UserError(f"--query: auto, class, mean, or row,column of a patch such as 3,4, not {text}")
    row, column = int(place[1]), int(place[2])
    if row >= grid[0] or column >= grid[1]:
        raise UserError(f"--query: there are {grid[0]} rows and {grid[1]} columns, counted from 0, so no patch {text}")
    return row, column


def _marked(pixels: torch.Tensor, query: Query, grid: tuple[int, int]) -> torch.Tensor:
    """Pixels (B, S, S, 3) with a yellow frame around the patch that is the query, if one is."""
    if isinstance(query, str):
        return pixels
    top, down = (pixels.shape[1] * row // grid[0] for row in (query[0], query[0] + 1))
    left, across = (pixels.shape[2] * column // grid[1] for column in (query[1], query[1] + 1))
    marked, width = pixels.clone(), max(1, (down - top) // 8)
    marked[:, top:down, left:across] = torch.tensor([255, 225, 0], dtype=torch.uint8)
    inner = (slice(None), slice(top + width, down - width), slice(left + width, across - width))
    marked[inner] = pixels[inner]
    return marked


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="headrace attention",
        description="Where a vision transformer looks: attention of each head, laid over images.",
    )
    add_arguments(parser, "attention.png")
    parser.add_argument("--block", type=int, default=-1, help="counted from 0, or from the end: -1 is the last (-1)")
    parser.add_argument(
        "--query", default="auto", help="whose attention: class, mean (of all patches), or row,column of a patch"
    )
    arguments = parser.parse_args(argv)
    seen = look(arguments)
    attention = attention_of(seen.encoder, seen.images, arguments.block)
    query = query_of(arguments.query, seen.encoder, attention.grid)
    maps = attention.maps(query).cpu()
    who = {"class": "the class token", "mean": "all patches, averaged"}.get(query, f"patch {arguments.query}")
    kept = maps.sum((2, 3)).mean().item()
    note = f"{seen.name}, block {arguments.block % len(seen.encoder.blocks)}: attention of {who}. "
    note += "Each map goes from 0, dark, to its own maximum."
    if attention.class_token:
        others = (
            "class token, which is no patch" if not attention.registers else "class token and registers, no patches"
        )
        note += f" {1 - kept:.0%} of the attention goes to the {others}."
    rows = [
        ("image", _marked(seen.pixels, query, attention.grid)),
        ("mean of heads", overlay(seen.pixels, maps.mean(1))),
    ]
    rows += [(f"head {head}", overlay(seen.pixels, maps[:, head])) for head in range(min(_HEADS, maps.shape[1]))]
    save_values(arguments.out, maps)
    plot_rows(rows, arguments.out, note)
    heads, (down, across) = maps.shape[1], attention.grid
    print(f"{arguments.out}: {len(maps)} images, {heads} heads, {down} x {across} patches, attention of {who}")
    return 0
