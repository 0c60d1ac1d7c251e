"""Pre-training: ``torchrun --nproc-per-node N train/pretrain.py <recipe> [section.key=value ...]``.

One batch can be followed from here: `train.loop.train` -> `Loader.__next__` -> `Algorithm.forward` -> `train_step`.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from pathlib import Path

import torch
import yaml
from safetensors.torch import save_file

import headrace
from headrace import kernels
from headrace.errors import UserError, run_command
from headrace.models.algorithm import Algorithm
from headrace.models.algorithms import find_algorithm
from headrace.models.distributed import synchronize_batch_norm
from headrace.pipelines.loaders import choose_loader, make_loader
from headrace.pipelines.order import Order, shard_sizes
from headrace.pipelines.quarantine import QUARANTINE_FILE, Quarantine
from headrace.pipelines.sources import open_source
from headrace.train import checkpoint, config
from headrace.train.distributed import Launch, launch, pick_device
from headrace.train.loop import train
from headrace.train.metrics import MetricsLog
from headrace.train.optim import build_optimizer, peak_lr
from headrace.train.schedules import warmup_cosine
from headrace.train.settings import AdamWSettings, DataSettings, SGDSettings, TrainSettings


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A checked recipe; one attribute per section."""

    name: str
    resolved: str  # as YAML, with the origin of each value
    algorithm: Algorithm.Config
    data: DataSettings
    train: TrainSettings
    optim: AdamWSettings | SGDSettings
    kernels: dict[str, str]

    def plain(self) -> dict:
        """The sections as dicts, lists and scalars."""
        return config.plain({key: getattr(self, key) for key in ("algorithm", "data", "train", "optim", "kernels")})


def load_recipe(path: str, overrides: list[str]) -> Recipe:
    """Reads and checks a recipe. Raises `UserError` naming every problem."""
    tree = config.load(path, overrides)
    algorithm = find_algorithm(tree.get("algorithm.name").value)
    types = {
        "description": str | None,
        "algorithm": algorithm.Config,
        "data": DataSettings,
        "train": TrainSettings,
        "optim": AdamWSettings | SGDSettings,
        "kernels": dict[str, str],
    }
    sections = config.build(tree, types)
    resolved = config.show(tree, sections)
    sections.pop("description")
    return Recipe(name=Path(path).stem, resolved=resolved, **sections)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="headrace pretrain", description="Pre-train an encoder from a recipe.")
    parser.add_argument("recipe", help="a YAML file, or the name of a packaged recipe such as mae_vit-tiny")
    parser.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="e.g. data.train=shards train.max_steps=50"
    )
    parser.add_argument("--show", action="store_true", help="print the resolved recipe with the origin of each value")
    arguments = parser.parse_args(argv)
    if os.getcwd() not in sys.path:  # so that a recipe can name algorithms and kernels beside it
        sys.path.append(os.getcwd())
    recipe = load_recipe(arguments.recipe, arguments.overrides)
    if arguments.show:
        print(recipe.resolved, end="")
        return 0
    with launch(pick_device(recipe.train.device)) as process:
        pretrain(recipe, process)
    return 0


def pretrain(recipe: Recipe, process: Launch) -> Path:
    """Runs (or resumes) a recipe in this process; returns the run directory.

    Leaves there: config.yaml, step-XXXXXXXX.pt, metrics.jsonl, quarantine.jsonl if there are bad images and, at the
    end, encoder.safetensors.
    """
    settings = recipe.train
    out = Path(settings.out or f"runs/{recipe.name}")
    if recipe.data.train is None:
        raise UserError("data.train: missing; give a folder of shards or of images, e.g. data.train=path/to/shards")
    source = open_source(recipe.data.train)
    blocks = shard_sizes(source) if recipe.data.block == "shard" else recipe.data.block
    order = Order(len(source), settings.batch_size, seed=settings.seed, last=recipe.data.last_batch, blocks=blocks)
    total_steps = settings.max_steps or settings.epochs * order.steps_per_epoch
    resumed = _find_resume(recipe, out)

    kernels.configure(recipe.kernels)
    torch.manual_seed(settings.seed)  # every rank starts from the same weights
    algorithm = find_algorithm(recipe.algorithm.name)(recipe.algorithm)
    algorithm = synchronize_batch_norm(algorithm, process.device).to(process.device, memory_format=torch.channels_last)
    optimizer = build_optimizer(algorithm, recipe.optim)
    kind, why = choose_loader(source, recipe.data.loader, process.device)
    if process.is_main and not resumed:  # what another run has found may have been repaired since
        (out / QUARANTINE_FILE).unlink(missing_ok=True)
    process.barrier()
    quarantine = Quarantine(source, recipe.data.max_bad, out / QUARANTINE_FILE)
    loader = make_loader(
        source,
        algorithm.inputs(),
        order,
        kind=kind,
        threads=recipe.data.threads or max(1, (os.cpu_count() or 1) // process.local_world),
        seed=settings.seed,
        device=process.device,
        rank=process.rank,
        world=process.world,
        quarantine=quarantine,
    )
    try:
        first_step = 0
        if resumed:
            first_step = _restore(resumed[1], algorithm, optimizer, loader)
        if process.is_main:
            _announce(recipe, process, source, f"{kind} ({why})", algorithm, order, total_steps, resumed)
        if first_step >= total_steps:
            return out
        if process.is_main:
            out.mkdir(parents=True, exist_ok=True)
            (out / "config.yaml").write_text(recipe.resolved)
        process.barrier()

        def save(step: int) -> None:
            if process.is_main:
                state = {
                    "model": algorithm.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "step": step,
                    "loader": loader.state_dict(),
                    "config": recipe.plain(),
                    "version": headrace.__version__,
                }
                checkpoint.save(out, step, state, settings.keep)

        peak = peak_lr(recipe.optim, settings.batch_size)
        lrs = warmup_cosine(peak, total_steps, round(recipe.optim.warmup * total_steps), peak * recipe.optim.final_lr)
        log = MetricsLog(out, first_step, total_steps, process.is_main)
        try:
            train(
                algorithm,
                loader,
                optimizer,
                lrs,
                settings,
                process,
                log,
                first_step=first_step,
                clip_grad=recipe.optim.clip_grad,
                save=save,
            )
        finally:
            log.close()
        process.barrier()  # until then others may still find bad images
        if process.is_main:
            quarantine.refresh()
            _finish(out, algorithm, recipe, quarantine)
    finally:
        loader.close()
    return out


def _find_resume(recipe: Recipe, out: Path) -> tuple[Path, dict] | None:
    """The checkpoint to continue from, as train.resume says."""
    resume = recipe.train.resume
    if resume == "never":
        if checkpoint.checkpoints(out):
            raise UserError(f"{out}: holds the checkpoints of a run; choose another train.out, or train.resume=auto")
        return None
    found = checkpoint.newest(out) if resume == "auto" else (Path(resume), checkpoint.load(Path(resume)))
    if found and found[1]["config"]["algorithm"] != recipe.plain()["algorithm"]:
        raise UserError(
            f"{found[0]}: comes from another algorithm section than this recipe's; choose another train.out, "
            "or compare with the config.yaml beside it"
        )
    return found


def _restore(state: dict, algorithm: Algorithm, optimizer: torch.optim.Optimizer, loader) -> int:
    algorithm.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    loader.load_state_dict(state["loader"])
    return state["step"]


def _announce(recipe, process, source, loader, algorithm, order, total_steps, resumed) -> None:
    """The start-up block: every choice that was made."""
    settings, device = recipe.train, str(process.device)
    if process.device.type == "cuda":
        device = torch.cuda.get_device_name(process.device)
    parameters = sum(p.numel() for p in algorithm.parameters()) / 1e6
    labels = f"{len(source.classes)} classes" if source.classes else "no labels"
    rows = {
        "recipe": f"{recipe.name} -> {settings.out or f'runs/{recipe.name}'}",
        "algorithm": f"{recipe.algorithm.name}, {parameters:.2f} M parameters, {settings.precision}",
        "data": f"{source.name}: {len(source):,} images, {labels}",
        "loader": loader,
        "processes": f"{process.world} on {device}, global batch {settings.batch_size}",
        "steps": f"{total_steps:,} ({total_steps / order.steps_per_epoch:.1f} epochs of {order.steps_per_epoch:,})",
        "resumed": f"{resumed[0]} at step {resumed[1]['step']}" if resumed else "no, a new run",
    }
    for row in kernels.report(process.device.type):
        rows[f"kernel {row.op}"] = f"{row.chosen} ({row.why})"
    width = max(map(len, rows))
    print("\n".join(f"{key:<{width}}  {value}" for key, value in rows.items()), flush=True)


def _finish(out: Path, algorithm: Algorithm, recipe: Recipe, quarantine: Quarantine) -> None:
    """Writes the encoder alone and reports what was replaced."""
    tensors = {key: value.detach().cpu().contiguous() for key, value in algorithm.encoder.state_dict().items()}
    save_file(tensors, out / "encoder.safetensors", metadata={"config": yaml.safe_dump(recipe.plain()["algorithm"])})
    if quarantine:
        print(f"{len(quarantine):,} images could not be decoded and were replaced by others ({out / QUARANTINE_FILE}):")
        print("\n".join(f"  {line}" for line in quarantine.lines(10)))
    print(f"done: {out}/encoder.safetensors")


if __name__ == "__main__":
    sys.exit(run_command(main))
