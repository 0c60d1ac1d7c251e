"""How large a model is, and where: ``headrace params <recipe or model>``."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import torch
from torch import nn

from ..errors import UserError
from ..models.algorithms import make_algorithm
from ..models.targets.frozen import without_weights
from ..train.recipe.recipe import load_recipe
from .columns import aligned
from .flops import multiply_adds
from .models_api import MODELS, count, random_model


def tree(encoder: nn.Module, counts: dict[str, int], depth: int) -> Iterator[tuple[int, str, int, int]]:
    """(level, name, parameters, multiply-adds) of the modules down to `depth`, each with all that is in it.

    What an opened module holds or computes besides its parts has rows of its own, so the rows below one add up to it.
    `counts`: of `multiply_adds`.
    """

    def walk(module: nn.Module, path: str, name: str, level: int) -> Iterator[tuple[int, str, int, int]]:
        parts = dict(module.named_children())
        total = _of(module, path, counts)
        yield level, name, count(module), total
        if level == depth or not parts:
            return
        for key, parameter in module.named_parameters(recurse=False):
            yield level + 1, key, parameter.numel(), 0
        rest = total
        for key, part in parts.items():
            inside = f"{path}.{key}" if path else key
            rest -= _of(part, inside, counts)
            yield from walk(part, inside, key, level + 1)
        if rest:
            yield level + 1, "(between these)", 0, rest

    return walk(encoder, "", type(encoder).__name__, 0)


def _of(module: nn.Module, path: str, counts: dict[str, int]) -> int:
    """A list of modules is never called itself: its parts are."""
    if path in counts:
        return counts[path]
    return sum(_of(part, f"{path}.{key}" if path else key, counts) for key, part in module.named_children())


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="headrace params",
        description="Parameters, in millions, of a recipe's encoder and of all that it trains with, and what one image "
        "costs in each part of the encoder. What headrace models counts is the same: parameters, and no buffers "
        "such as queues or fixed tables of positions.",
    )
    parser.add_argument("recipe", help="a YAML file, a packaged recipe, or a name that headrace models lists")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    parser.add_argument("--depth", type=int, default=1, help="how deep the table of parts goes; 0: the whole alone (1)")
    arguments = parser.parse_intermixed_args(argv)
    if arguments.depth < 0:
        raise UserError(f"--depth: 0 or more, not {arguments.depth}")
    if arguments.recipe in MODELS:
        if arguments.overrides:
            raise UserError(f"params: {arguments.recipe} is a model, which takes no {arguments.overrides[0]}")
        model, size = random_model(arguments.recipe), MODELS[arguments.recipe].size
        encoder = model.encoder
        modules = {"encoder": encoder, "with a linear layer to 1000 classes": model}
    else:
        section = load_recipe(arguments.recipe, arguments.overrides).algorithm
        with torch.device("meta"), without_weights():
            algorithm = make_algorithm(section)
        encoder, size = algorithm.encoder, algorithm.inputs().views[0].size
        modules = {"encoder": encoder, "all": algorithm}
    for what, module in modules.items():
        total, trained = count(module), sum(p.numel() for p in module.parameters() if p.requires_grad)
        print(f"{what:<{max(map(len, modules))}} {total / 1e6:10.3f} M, {trained / 1e6:10.3f} M with gradient")
    rows = [(f"encoder, one image of {size} px", "parameters", "share", "multiply-adds", "share")]
    found = list(tree(encoder, multiply_adds(encoder, size), arguments.depth))
    _, _, most, work = found[0]
    for level, name, held, done in found:
        if held or done:
            shares = [f"{part / max(whole, 1):.1%}" for part, whole in ((held, most), (done, work))]
            rows.append((f"{'  ' * level}{name}", f"{held / 1e6:.3f} M", shares[0], f"{done / 1e9:.3f} G", shares[1]))
    print("\n" + "\n".join(aligned(rows)))
    return 0
