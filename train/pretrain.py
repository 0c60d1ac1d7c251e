"""Pre-training: ``torchrun --nproc-per-node N train/pretrain.py <recipe> [section.key=value ...]``.

One batch can be followed from here: `loop.train` -> `Loader.__next__` -> `step.Stepper` -> `Algorithm.forward`.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file

import headrace
from headrace import kernels
from headrace.errors import UserError, run_command
from headrace.models.algorithm import Algorithm, Embed
from headrace.models.algorithms import find_algorithm
from headrace.models.distributed import synchronize_batch_norm
from headrace.pipelines.images.rules import use_rules
from headrace.pipelines.loaders.choose import choose_loader, make_loader
from headrace.pipelines.loaders.quarantine import QUARANTINE_FILE, Quarantine
from headrace.pipelines.order import Order, shard_sizes
from headrace.pipelines.range_use import small_range
from headrace.pipelines.sources import open_source
from headrace.pipelines.spec import ByteSource, Loader
from headrace.train.engine import checkpoint
from headrace.train.engine.distributed import Launch, launch, pick_device
from headrace.train.engine.loop import train, wrap
from headrace.train.engine.metrics import MetricsLog, duration
from headrace.train.engine.optim import Schedules, build_optimizer
from headrace.train.engine.precision import cost, resolved
from headrace.train.engine.run_directory import ENCODER_FILE, locked, write_environment
from headrace.train.engine.sharding import check_shardable, gathered, shard, shared_model, shared_optimizer
from headrace.train.engine.step import Stepper
from headrace.train.engine.trackers import make_tracker
from headrace.train.engine.transforms import checkpoint_blocks
from headrace.train.evaluation.score import knn_score
from headrace.train.evaluation.sweep import sweep
from headrace.train.pretrain_command import main
from headrace.train.recipe.recipe import Recipe, smoke_images


def run(recipe: Recipe, generated: bool = False) -> int:
    """A command's run, alone or as one of torchrun's processes; `generated`: on images made for it."""
    if recipe.train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
    with launch(pick_device(recipe.train.device), recipe.train.timeout) as process:
        pretrain(recipe, process, smoke_images() if generated else None)
    return 0


def pretrain(
    recipe: Recipe, process: Launch, source: ByteSource | None = None, batches: Callable[..., Loader] | None = None
) -> Path:
    """Runs (or resumes) a recipe in this process, on `source` if given; returns the run directory.

    `batches` makes the loader of a method that learns from more than images and labels:
    ``batches(source, algorithm, order, seed=, device=, threads=, rank=, world=)``.

    Leaves there: config.yaml, environment.jsonl, step-XXXXXXXX.pt, metrics.jsonl, quarantine.jsonl if there are bad
    images and, at the end, encoder.safetensors.
    """
    settings, out = recipe.train, recipe.out
    use_rules(recipe.data.rules)
    if source is None:
        if recipe.data.train is None:
            raise UserError("data.train: missing; give a folder of shards or of images, e.g. data.train=path/to/shards")
        source = open_source(recipe.data.train)
    blocks = shard_sizes(source) if recipe.data.block == "shard" else recipe.data.block
    order = Order(len(source), settings.batch_size, seed=settings.seed, last=recipe.data.last_batch, blocks=blocks)
    share = len(order.ids(0, process.rank, process.world))
    if share % settings.accumulate:
        raise UserError(f"train.accumulate: {settings.accumulate} does not divide the {share} images of a process")
    total_steps = settings.max_steps or settings.epochs * order.steps_per_epoch

    kernels.configure(recipe.kernels)
    if settings.deterministic != torch.are_deterministic_algorithms_enabled():  # the call imports the compiler
        torch.use_deterministic_algorithms(settings.deterministic)
    torch.manual_seed(settings.seed)  # every rank starts from the same weights
    algorithm = find_algorithm(recipe.algorithm.name)(recipe.algorithm)
    torch.backends.cudnn.benchmark = not settings.deterministic and algorithm.equal_shapes
    algorithm = synchronize_batch_norm(algorithm, process.device).to(process.device, memory_format=torch.channels_last)
    algorithm.prepare(len(source))
    if settings.checkpointing:
        checkpoint_blocks(algorithm)
    if settings.shard:
        check_shardable(settings, recipe.optim)
        shard(algorithm, process)
    optimizer = build_optimizer(algorithm, recipe.optim)
    precision = resolved(settings.precision, process)
    kind, why = "workers", "annotations belong to the images"
    if batches is None:
        kind, why = choose_loader(source, recipe.data.loader, process.device, algorithm.inputs())
    threads = recipe.data.threads or process.cores
    score = knn_score(recipe, process, algorithm, source, threads)

    with locked(out) if process.is_main else nullcontext():
        resumed = _find_resume(recipe, out)
        process.require_equal(_facts(recipe, source, resumed))
        if process.is_main and not resumed:  # what another run has found may have been repaired since
            (out / QUARANTINE_FILE).unlink(missing_ok=True)
        process.barrier()
        quarantine = Quarantine(source, recipe.data.max_bad, out / QUARANTINE_FILE)
        share = {"seed": settings.seed, "device": process.device, "rank": process.rank, "world": process.world}
        batches = batches or partial(_views, kind=kind, recipe=recipe, quarantine=quarantine, precision=precision)
        loader = batches(source, algorithm, order, threads=threads, **share)
        try:
            if process.is_main:
                if (note := small_range(source)) is not None:
                    print(f"warning: {note}", flush=True)
                _announce(recipe, process, source, f"{kind} ({why})", algorithm, order, total_steps, resumed, precision)
            first_step = resumed[1]["step"] if resumed else 0
            if first_step >= total_steps:
                return out
            schedules = Schedules(recipe.optim, settings.batch_size, total_steps, order.steps_per_epoch)
            if settings.compile:
                algorithm.compile()
            stepper = Stepper(
                wrap(algorithm, process, unused_parameters=settings.unused_parameters),
                algorithm,
                optimizer,
                schedules,
                precision=precision,
                accumulate=settings.accumulate,
                clip_grad=recipe.optim.clip_grad,
            )
            if resumed:
                _restore(resumed[1], stepper, loader)
            embed = partial(sweep, source=source, process=process, batch_size=settings.batch_size, threads=threads)
            embed = partial(embed, quarantine=quarantine)
            finished = _train(recipe, process, loader, stepper, embed, score, first_step, total_steps)
            process.barrier()  # until then others may still find bad images
            if finished == total_steps:
                weights = gathered(algorithm.encoder.state_dict())
                if process.is_main:
                    quarantine.refresh()
                    _finish(out, weights, recipe, quarantine)
        finally:
            loader.close()
    return out


def _views(
    source: ByteSource, algorithm: Algorithm, order: Order, *, recipe: Recipe, precision: str, **share
) -> Loader:
    """The loader of a method that learns from views of images."""
    on_gpu = share["device"].type == "cuda"
    return make_loader(
        source,
        algorithm.inputs(),
        order,
        hw_decoder_load=recipe.data.hw_decoder_load,
        dtype=torch.bfloat16 if precision == "bf16" and on_gpu else torch.float32,
        **share,
    )


def _train(
    recipe: Recipe,
    process: Launch,
    loader: Loader,
    stepper: Stepper,
    embed: Embed,
    score: Callable[[], dict[str, float]] | None,
    first_step: int,
    total_steps: int,
) -> int:
    """The steps, with what the first process writes of them; returns how many are finished."""
    settings, out = recipe.train, recipe.out
    trackers, writer, began = [], None, time.perf_counter()
    if process.is_main:
        (out / "config.yaml").write_text(recipe.resolved, encoding="utf-8")
        (out / ENCODER_FILE).unlink(missing_ok=True)  # of the same run when it was shorter
        write_environment(out, process.device, process.world)
        writer = checkpoint.Writer(out, settings.keep, settings.keep_every)
        trackers = [make_tracker(kind, out, recipe.name, recipe.plain(), first_step) for kind in settings.trackers]

    def save(step: int) -> None:
        state = {
            "model": gathered(stepper.algorithm.state_dict()),
            "optimizer": gathered(stepper.optimizer.state_dict()),
            "scaler": stepper.scaler.state_dict(),
            "step": step,
            "loader": loader.state_dict(),
            "config": recipe.plain(),
            "version": headrace.__version__,
        }
        if writer:
            writer.save(step, state)

    log = MetricsLog(out, first_step, total_steps, process.is_main, trackers)
    try:
        finished = train(
            stepper,
            loader,
            settings,
            process,
            log,
            out=out,
            first_step=first_step,
            total_steps=total_steps,
            embed=embed,
            save=save,
            score=score,
        )
    finally:
        log.close()
        if writer:
            writer.finish()
    if process.is_main:
        print(_summary(finished - first_step, time.perf_counter() - began, recipe, loader), flush=True)
    return finished


def _facts(recipe: Recipe, source: ByteSource, resumed: tuple[Path, dict] | None) -> dict[str, object]:
    """What must be the same on all processes; paths may differ."""
    sections = recipe.plain()
    for key in ("train", "val"):
        sections["data"].pop(key)
    sections["train"].pop("out")
    keys = [source.key(i) for i in range(0, len(source), max(1, len(source) // 16))]
    return {
        "the version of headrace": headrace.__version__,
        "the version of torch": torch.__version__,
        "the number of training images": len(source),
        "which training images there are": [key.rpartition("/")[2] for key in keys],
        "the checkpoint to continue from (train.out must be seen by all)": resumed and resumed[1]["step"],
        **{f"the section {name}": section for name, section in sections.items()},
    }


def _find_resume(recipe: Recipe, out: Path) -> tuple[Path, dict] | None:
    """The checkpoint to continue from, as train.resume says."""
    resume, own = recipe.train.resume, checkpoint.checkpoints(out)
    if resume == "never" and own:
        raise UserError(f"{out}: holds the checkpoints of a run; choose another train.out, or train.resume=auto")
    if (out / ENCODER_FILE).exists() and not own:
        raise UserError(f"{out}: holds an encoder without the checkpoints of its run; choose another train.out")
    if resume == "never":
        return None
    found = checkpoint.newest(out) if resume == "auto" else (path := Path(resume).expanduser(), checkpoint.load(path))
    if found and found[1]["config"]["algorithm"] != recipe.plain()["algorithm"]:
        raise UserError(
            f"{found[0]}: comes from another algorithm section than this recipe's; choose another train.out, "
            "or compare with the config.yaml beside it"
        )
    return found


def _restore(state: dict, stepper: Stepper, loader: Loader) -> None:
    stepper.algorithm.load_state_dict(shared_model(state["model"], stepper.algorithm))
    stepper.watch_buffers()
    options = [
        {key: value for key, value in group.items() if key != "params"} for group in stepper.optimizer.param_groups
    ]
    parameters = [p for group in stepper.optimizer.param_groups for p in group["params"]]
    stepper.optimizer.load_state_dict(shared_optimizer(state["optimizer"], parameters))
    for group, own in zip(
        stepper.optimizer.param_groups, options
    ):  # what the recipe says now counts, not what it said then
        group.update(own)
    stepper.scaler.load_state_dict(state["scaler"])
    loader.load_state_dict(state["loader"])


def _announce(recipe, process, source, loader, algorithm, order, total_steps, resumed, precision) -> None:
    """The start-up block: every choice that was made."""
    settings, device = recipe.train, str(process.device)
    if process.device.type == "cuda":
        device = torch.cuda.get_device_name(process.device)
    parameters = sum(p.numel() for p in algorithm.parameters()) / 1e6
    labels = f"{len(source.classes)} classes" if source.classes else "no labels"
    batch = f"global batch {settings.batch_size}"
    if settings.accumulate > 1:
        batch += f" in {settings.accumulate} parts"
    how = [precision if precision == settings.precision else f"{precision} (auto)"]
    how += [key for key in ("deterministic", "checkpointing", "compile", "shard") if getattr(settings, key)]
    rows = {
        "recipe": f"{recipe.name} -> {recipe.out}",
        "algorithm": f"{recipe.algorithm.name}, {parameters:.2f} M parameters, {', '.join(how)}",
        "data": f"{source.name}: {len(source):,} images, {labels}",
        "loader": loader,
        "processes": f"{process.world} on {device}, {batch}",
        "steps": f"{total_steps:,} ({total_steps / order.steps_per_epoch:.1f} epochs of {order.steps_per_epoch:,})",
        "resumed": f"{resumed[0]} at step {resumed[1]['step']}" if resumed else "no, a new run",
    }
    for row in kernels.report(process.device.type):
        operator = row.op if row.why == "automatic" else f"{row.op} ({row.why})"
        rows[f"{row.chosen} kernels"] = ", ".join(filter(None, (rows.get(f"{row.chosen} kernels"), operator)))
    width = max(map(len, rows))
    print("\n".join(f"{key:<{width}}  {value}" for key, value in rows.items()), flush=True)
    if warning := cost(settings.precision, process.device):
        print(f"headrace: {warning}", file=sys.stderr, flush=True)


def _summary(steps: int, seconds: float, recipe: Recipe, loader: Loader) -> str:
    stats, rate = loader.stats(), steps * recipe.train.batch_size / seconds
    parts = [f"{steps:,} steps in {duration(seconds)}, {rate:,.0f} images/s"]
    parts.append(f"{stats.wait_seconds / seconds:.1%} of the time waiting for data")
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        parts.append(f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB of GPU memory at the most")
    return "; ".join(parts)


def _finish(out: Path, weights: dict[str, torch.Tensor], recipe: Recipe, quarantine: Quarantine) -> None:
    """Writes the encoder alone and reports what was replaced."""
    tensors = {key: value.detach().cpu().contiguous() for key, value in weights.items()}
    save_file(tensors, out / ENCODER_FILE, metadata=checkpoint.encoder_metadata(recipe.plain()))
    if quarantine:
        print(f"{len(quarantine):,} images could not be decoded and were replaced by others ({out / QUARANTINE_FILE}):")
        print("\n".join(f"  {line}" for line in quarantine.lines(10)))
    print(f"done: {out}/{ENCODER_FILE}")


if __name__ == "__main__":
    sys.exit(run_command(main))
