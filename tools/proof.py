"""Whole models on our kernels without a GPU: `python -m headrace.tools.proof record | execute [RECIPE ...]`.

record:  the step's forward of each recipe's smoke copy on fake CUDA tensors under CUDA's autocast, in both precisions:
         errors of dtype, launches that a GPU would refuse, operators in a dtype that none of their workloads has.
execute: loss and gradients of smoke copies whose kernels are compiled for sm_90 and executed on the CPU, beside those
         of the reference.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from functools import cache
from typing import NamedTuple
from unittest import mock

import torch

from ..kernels import registry
from ..kernels.proof.launches import executed
from ..kernels.proof.memory import Findings
from ..models.algorithm import Algorithm, Progress
from ..models.algorithms import find_algorithm
from ..models.backbones import MixMIMTransformer, Swin, ViT
from ..pipelines.spec import Batch, Mask
from ..pipelines.views.masks import draw_mask
from ..train.recipe import config
from ..train.recipe.recipe import load_recipe
from .fake_cuda import fake, fake_cuda, faults, put_on_fake_cuda

IMAGES = 4
START = Progress(0, 100, 10)
PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}
MODELS = (
    "simmim_swin-base-w6_16xb128-amp-coslr-100e_in1k-192px",
    "beit_beit-base-p16_8xb256-amp-coslr-300e_in1k",
    "mixmim_mixmim-base_16xb128-amp-coslr-600e_in1k",
    "mae_vit-base-p16_8xb512-amp-coslr-300e_in1k",
    "simclr_resnet18_cifar10",
    "dino_vit-tiny_cifar10",
    "maskfeat_vit-base-p16_8xb256-amp-coslr-300e_in1k",
)
LIMIT = 1e-4  # of the norm of the reference's gradient: sums in another order, through whole networks in float32


class Recorded(NamedTuple):
    recipe: str
    precision: str
    launches: int
    dtypes: frozenset[tuple[str, str]]  # operator, dtype
    fault: str  # empty: none


class Executed(NamedTuple):
    recipe: str
    launches: int
    loss: float  # relative difference
    gradient: float  # norm of the difference over the reference's
    fault: str


def smoke_copy(recipe: str) -> Algorithm:
    """The tiny copy of a recipe's model, with the weights of seed 0, told of 64 samples; but with heads of 32 channels,
    which our kernels ask for."""
    section = load_recipe(recipe, ["train.max_steps=1"]).algorithm.smoke()
    backbone = getattr(section, "backbone", None)
    if isinstance(backbone, ViT.Config):
        section = replace(section, backbone=replace(backbone, width=64))
    elif isinstance(backbone, (Swin.Config, MixMIMTransformer.Config)):
        section = replace(section, backbone=replace(backbone, width=32, heads=(1, 2, 4, 8)))
    torch.manual_seed(0)
    algorithm = find_algorithm(section.name)(section)
    algorithm.prepare(64)
    return algorithm.train()


def noise(algorithm: Algorithm) -> Batch:
    """A batch of noise for it."""
    inputs, generator = algorithm.inputs(), torch.Generator().manual_seed(0)
    views = {}
    for view in inputs.views:
        shape = (view.copies, IMAGES, 3, view.side, view.side)
        views[view.name] = torch.randn(shape, generator=generator)
    ids = torch.arange(IMAGES)
    mask = None if inputs.mask is None else draw_mask(inputs.mask, 0, 0, ids)
    return Batch(views=views, ids=ids, labels=ids % 4, mask=mask, step=0, epoch=0)


def record(recipe: str) -> Iterator[Recorded]:
    """One for each precision."""
    algorithm = smoke_copy(recipe)
    batch = noise(algorithm)
    with fake_cuda(None):
        put_on_fake_cuda(algorithm)
        mask = batch.mask and Mask(**{f.name: fake(getattr(batch.mask, f.name)) for f in fields(Mask)})
        views = {name: fake(view) for name, view in batch.views.items()}
        batch = replace(batch, views=views, labels=fake(batch.labels), mask=mask)
    for precision, dtype in PRECISIONS.items():
        with fake_cuda(dtype) as seen:
            try:
                algorithm(batch, START)
                wrong = [fault for launch in seen.launches for fault in faults(launch)]
                wrong += [f"{op} in {kind}: none of its workloads is" for op, kind in sorted(_untimed(seen.dtypes))]
            except Exception as error:  # of a model, of torch's fake tensors, of Triton's binder
                wrong = [f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"]
        yield Recorded(recipe, precision, len(seen.launches), frozenset(seen.dtypes), "; ".join(dict.fromkeys(wrong)))


def _untimed(dtypes: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """Operators in a dtype that training uses and benchmarks do not; float16 counts as bfloat16, which is as wide."""
    return {(op, kind) for op, kind in dtypes if kind.replace("bfloat16", "float16") not in _timed(op)}


@cache
def _timed(op: str) -> frozenset[str]:
    """Dtypes of an operator's workloads."""
    workloads = importlib.import_module(f"headrace.kernels.{op}.workloads").WORKLOADS
    shape_class = registry.operator(op).shape_class
    with fake_cuda(None), torch.device("cuda"), torch.autocast("cuda", enabled=False):
        found = set()
        for case in workloads:
            args, kwargs = case.arguments()
            found.add(str(shape_class(*args, **kwargs)[1]).removeprefix("torch.").replace("bfloat16", "float16"))
    return frozenset(found)


@contextmanager
def executed_everywhere(target: str) -> Iterator[Findings]:
    """Inside the block every operator on CPU tensors is what a GPU would take, executed."""

    def decide(op, shape, impl=None):
        able = (one for one in op.implementations if one.name == "triton" and not one.supports("cuda", *shape[1:]))
        chosen = next(able, op.implementations[-1])
        return registry.Decision(chosen, chosen.load(), "executed", {})

    with mock.patch.object(registry, "decide", decide), mock.patch.object(registry, "_decisions", {}):
        with executed(target) as findings:
            yield findings


def execute(recipe: str, target: str = "sm_90") -> Executed:
    """One smoke copy, with the reference and with executed kernels: the same weights, batch and draws."""
    algorithm = smoke_copy(recipe)
    batch = noise(algorithm)
    weights = [each for each in algorithm.parameters() if each.requires_grad]
    state = {name: value.clone() for name, value in algorithm.state_dict().items()}

    def step() -> tuple[torch.Tensor, torch.Tensor]:
        algorithm.load_state_dict(state)
        torch.manual_seed(1)
        loss = algorithm(batch, START).loss
        gradients = torch.autograd.grad(loss, weights, allow_unused=True)
        return loss.detach().double(), torch.cat([g.double().flatten() for g in gradients if g is not None])

    loss, gradient = step()
    with executed_everywhere(target) as findings:
        own_loss, own_gradient = step()
    far = float((own_gradient - gradient).norm() / gradient.norm())
    difference = float((own_loss - loss).abs() / loss.abs())
    fault = "; ".join(findings.lines())
    if not (difference < LIMIT and far < LIMIT):
        fault = fault or "not the reference's"
    return Executed(recipe, findings.launches, difference, far, fault or "" if findings.launches else "no launch")


def one_of_each_method() -> list[str]:
    """The first recipe of every method that has a smoke copy."""
    firsts: dict[str, str] = {}
    for recipe in packaged():
        firsts.setdefault(config.load(recipe).get("algorithm.name").value, recipe)
    return list(firsts.values())


def packaged() -> list[str]:
    """Recipes whose method has a smoke copy: not those of detectors and segmenters, which have none of our kernels."""
    methods = {name: config.load(name).get("algorithm.name").value for name in config.packaged()}
    own = {name for name in set(methods.values()) if find_algorithm(name).Config.smoke is not Algorithm.Config.smoke}
    return [recipe for recipe, name in methods.items() if name in own]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m headrace.tools.proof", description=__doc__)
    parser.add_argument("what", choices=("record", "execute"))
    parser.add_argument("recipe", nargs="*", help="all of them for record; one of each kind of network for execute")
    parser.add_argument("--first", action="store_true", help="record: one recipe of each method")
    args = parser.parse_args(argv)
    began, failed = time.process_time(), 0
    recipes = args.recipe or (one_of_each_method() if args.first else packaged())
    for recipe in MODELS if args.what == "execute" and not args.recipe else recipes:
        for row in record(recipe) if args.what == "record" else [execute(recipe)]:
            failed += bool(row.fault)
            figures = (
                [row.precision] if args.what == "record" else [f"loss {row.loss:.1e}", f"gradient {row.gradient:.1e}"]
            )
            print(recipe, *figures, f"{row.launches} launches", row.fault or "ok", sep="  ", flush=True)
    print(f"{failed} failed, {time.process_time() - began:.0f} s of a processor")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
