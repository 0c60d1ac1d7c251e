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

import headrace
from headrace import kernels
from headrace.errors import UserError, run_command
from headrace.models.algorithm import Algorithm, Embed
from headrace.models.algorithms import make_algorithm
from headrace.models.distributed import synchronize_batch_norm
from headrace.pipelines.identity import identity
from headrace.pipelines.images.rules import rules, use_rules
from headrace.pipelines.loaders.choose import choose_pixels, make_loader
from headrace.pipelines.loaders.quarantine import QUARANTINE_FILE, Quarantine
from headrace.pipelines.order import Order, share_of
from headrace.pipelines.plan.columns import images_of
from headrace.pipelines.plan.facts import plan_hash
from headrace.pipelines.plan.follow import unseen
from headrace.pipelines.plan.given import as_source
from headrace.pipelines.plan.mixture import MixedOrder
from headrace.pipelines.plan.order_of import order_of, run_length
from headrace.pipelines.range_use import small_range
from headrace.pipelines.spec import ByteSource, InputSpec, Loader
from headrace.train.announcement import announce, summary
from headrace.train.ending import end, finish
from headrace.train.engine import checkpoint
from headrace.train.engine.distributed import Launch, launch, pick_device
from headrace.train.engine.interval import OfSets
from headrace.train.engine.loop import train, wrap
from headrace.train.engine.metrics import MetricsLog, say
from headrace.train.engine.optim import Schedules, build_optimizer
from headrace.train.engine.run_directory import (
    CONFIG_FILE,
    ENCODER_FILE,
    locked,
    write_environment,
    write_whole,
)
from headrace.train.engine.sharding import check_shardable, gathered, shard
from headrace.train.engine.step import Stepper
from headrace.train.engine.trackers import make_tracker
from headrace.train.engine.transforms import checkpoint_blocks
from headrace.train.evaluation.embed_encoder import load_encoder
from headrace.train.evaluation.score import knn_score
from headrace.train.evaluation.sweep import sweep
from headrace.train.heap import keep_freed
from headrace.train.init import Guard, encoder_places, initialise
from headrace.train.ledger import FOLDER, Ledger, frozen_in, renewal, require_sample_loss
from headrace.train.lora import add_lora
from headrace.train.precision import resolved
from headrace.train.pretrain_command import main
from headrace.train.recipe.recipe import Recipe, smoke_images
from headrace.train.recipe.sizes import inputs_of_run
from headrace.train.resume import Resumed, find_resume, go_back, restore, saved_state


def run(recipe: Recipe, generated: bool = False) -> int:
    """A command's run, alone or as one of torchrun's processes; `generated`: on images made for it."""
    if recipe.train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
    device = pick_device(recipe.train.device)
    if device.type == "cpu":
        keep_freed()
    with launch(device, recipe.train.timeout) as process:
        pretrain(recipe, process, smoke_images(recipe.data.channels) if generated else None)
    return 0


def pretrain(
    recipe: Recipe, process: Launch, source: ByteSource | None = None, batches: Callable[..., Loader] | None = None
) -> Path:
    """Runs (or resumes) a recipe in this process, on `source` if given; returns the run directory.

    `batches` makes the loader of a method that learns from more than images and labels:
    ``batches(source, algorithm, order, seed=, device=, threads=, rank=, world=)``.

    Leaves there: config.yaml, environment.jsonl, step-XXXXXXXX.pt, metrics.jsonl, quarantine.jsonl if there are bad
    images, sound.bin of the dali loader, the folder ledger where one is kept and, at the end, encoder.safetensors.
    """
    settings, out = recipe.train, recipe.out
    if settings.ledger:
        require_sample_loss(recipe.algorithm.name)
    use_rules(recipe.data.rules)
    if source is None:
        if recipe.data.train is None:
            raise UserError("data.train: missing; give a folder of shards or of images, e.g. data.train=path/to/shards")
        source = as_source(recipe.data.train, recipe.data.mix)
    length = {"epochs": settings.epochs, "max_steps": settings.max_steps}
    reading = {"seed": settings.seed, "last": recipe.data.last_batch, "block": recipe.data.block, **length}
    frozen = unseen(len(source)) if settings.ledger else None
    order = order_of(source, settings.batch_size, **reading, frozen=frozen)
    share = share_of(order.global_batch, process.world)
    if share % settings.accumulate:
        raise UserError(f"train.accumulate: {settings.accumulate} does not divide the {share} images of a process")
    kernels.configure(recipe.kernels)
    if settings.deterministic != torch.are_deterministic_algorithms_enabled():  # the call imports the compiler
        torch.use_deterministic_algorithms(settings.deterministic)
    torch.manual_seed(settings.seed)  # every rank starts from the same weights
    algorithm = make_algorithm(recipe.algorithm)
    fresh = settings.init is not None and settings.resume in ("auto", "never") and not checkpoint.checkpoints(out)
    if fresh:  # elsewhere the checkpoint's weights take their place
        report = initialise(algorithm, settings.init)
        use_rules(recipe.data.rules)  # those of the run that it was read from may be others
        if process.is_main:
            say(report)
    data = identity(source, order.blocks)
    if algorithm.wants is not None:  # after train.init, which goes into every copy of the encoder
        try:
            teacher = load_encoder(algorithm.wants)
        except UserError as fault:
            raise UserError(f"{fault}; the algorithm section names it as a teacher") from None
        if rules().channels != recipe.data.channels:
            known = rules().channels or "RGB"
            raise UserError(f"data.channels: {recipe.data.channels or 'RGB'}, but {algorithm.wants} reads {known}")
        use_rules(recipe.data.rules)  # not those of the teacher's run
        algorithm.take_teacher(teacher.module, teacher.view, f"{teacher.digest} {data} {recipe.data.rules}")
    if settings.lora is not None:
        report = add_lora(algorithm, encoder_places(algorithm), settings.lora)
        if process.is_main:
            say(report)
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
    kind, why, pixels = "workers", "annotations belong to the images", None
    if batches is None:
        wanted = source, recipe.data.loader, recipe.data.pixels, process.device
        kind, why, pixels = choose_pixels(*wanted, algorithm.inputs())
    threads = recipe.data.threads or process.cores
    score = knn_score(recipe, process, algorithm, source, threads)

    data |= {"plan": plan_hash(source, order)} if isinstance(order, MixedOrder) else {}
    with locked(out) if process.is_main else nullcontext():
        resumed = find_resume(recipe, data, order)
        if resumed and isinstance(order, MixedOrder):
            if frozen:
                frozen = frozen_in(resumed.state, resumed.step, source, resumed.replanned)
            order = order_of(source, settings.batch_size, **reading, begin=resumed.begin, frozen=frozen)
        total_steps = run_length(order, **length)
        process.require_equal(_facts(recipe, data, resumed))
        if process.is_main and not resumed:  # what another run has found may have been repaired since
            (out / QUARANTINE_FILE).unlink(missing_ok=True)
        process.barrier()
        quarantine = Quarantine(source, recipe.data.max_bad, out / QUARANTINE_FILE)
        ledger = _ledger(recipe, source, process, resumed, total_steps)
        if process.is_main:
            if (note := small_range(source)) is not None:
                say(f"warning: {note}")
            announce(recipe, process, source, f"{kind} ({why})", algorithm, order, total_steps, resumed, precision)
        if resumed and resumed.step >= total_steps:
            end(resumed, recipe, process, algorithm, quarantine, total_steps)
            return out
        share = {"seed": settings.seed, "device": process.device, "rank": process.rank, "world": process.world}
        inputs = inputs_of_run(recipe.algorithm, total_steps, order.steps_per_epoch, settings.seed)
        views = {"kind": kind, "pixels": pixels, "inputs": inputs, "recipe": recipe, "precision": precision}
        batches = batches or partial(_views, quarantine=quarantine, **views)
        loader = batches(source, algorithm, order, threads=threads, **share)
        try:
            schedules = Schedules(recipe.optim, settings.batch_size, total_steps, order.steps_per_epoch)
            if settings.compile:
                algorithm.compile()
            of_sets = None
            if isinstance(order, MixedOrder):
                of_sets = OfSets(order, process, loader, resumed.step if resumed else 0)
            stepper = Stepper(
                wrap(algorithm, process, unused_parameters=settings.unused_parameters),
                algorithm,
                optimizer,
                schedules,
                precision=precision,
                accumulate=settings.accumulate,
                clip_grad=recipe.optim.clip_grad,
                clip_apart=recipe.optim.clip_apart,
                notes=[each.add for each in (ledger, of_sets) if each and algorithm.sample_loss],
            )
            if resumed:
                restore(resumed, stepper, loader)
            if settings.guard is not None:
                score = Guard(score, settings.guard, lambda: _weights(recipe, process, algorithm), out, bool(resumed))
                if process.is_main:
                    say(f"train.guard: k-NN accuracy {score.start:.4f} at the start")
            embed = partial(sweep, source=source, process=process, batch_size=settings.batch_size, threads=threads)
            embed = partial(embed, quarantine=quarantine, pixels=recipe.data.pixels)
            finished = _train(
                recipe, process, loader, stepper, embed, score, ledger, of_sets, data, resumed, total_steps
            )
            process.barrier()  # until then others may still find bad images
            if finished == total_steps:
                weights = gathered(algorithm.encoder.state_dict())
                if process.is_main:
                    finish(out, weights, recipe.plain(), quarantine)
        finally:
            loader.close()
    return out


def _weights(recipe: Recipe, process: Launch, algorithm: Algorithm) -> dict:
    """Weights and recipe, of which a file makes a checkpoint for everything but resuming; {} on other processes."""
    weights = gathered(algorithm.state_dict())
    return {"model": weights, "config": recipe.plain()} if process.is_main else {}


def _views(
    source: ByteSource,
    algorithm: Algorithm,
    order: Order,
    *,
    inputs: InputSpec,
    recipe: Recipe,
    precision: str,
    **share,
) -> Loader:
    """The loader of a method that learns from views of images."""
    on_gpu = share["device"].type == "cuda"
    return make_loader(
        source,
        inputs,
        order,
        hw_decoder_load=recipe.data.hw_decoder_load,
        dtype=torch.bfloat16 if precision == "bf16" and on_gpu else torch.float32,
        **share,
    )


def _ledger(
    recipe: Recipe, source: ByteSource, process: Launch, resumed: Resumed | None, total_steps: int
) -> Ledger | None:
    rows = resumed.state.get("ledger") if resumed else None
    if not recipe.train.ledger or rows is None and resumed and resumed.step >= total_steps:
        return None
    if resumed and rows is None:
        resumed.notes.append(f"the ledger begins after step {resumed.step}: the checkpoint has none of these images")
    return Ledger(recipe.out / FOLDER, len(source), process, rows, images_of(source))


def _train(
    recipe: Recipe,
    process: Launch,
    loader: Loader,
    stepper: Stepper,
    embed: Embed,
    score: Callable[[], dict[str, float]] | None,
    ledger: Ledger | None,
    of_sets: OfSets | None,
    data: dict,
    resumed: Resumed | None,
    total_steps: int,
) -> int:
    """The steps, with what the first process writes of them; returns how many are finished."""
    settings, out, first_step = recipe.train, recipe.out, resumed.step if resumed else 0
    trackers, writer, began = [], None, time.perf_counter()
    if process.is_main:
        write_whole(out / CONFIG_FILE, recipe.resolved.encode())
        write_environment(out, process.device, process.world)
        if resumed and resumed.goes_back:
            go_back(resumed, recipe, data)
        writer = checkpoint.Writer(out, settings.keep, settings.keep_every)
        kinds = dict.fromkeys(settings.trackers)
        trackers = [make_tracker(kind, out, recipe.name, recipe.plain(), first_step) for kind in kinds]

    def save(step: int) -> None:
        state = saved_state(recipe, data, stepper, loader, step)
        if ledger:
            ledger.flush()
        if writer:
            writer.save(step, state | ({"ledger": ledger.state()} if ledger else {}))

    log = MetricsLog(out, first_step, total_steps, process.is_main, trackers)
    if process.is_main:  # last, when nothing at the start can fail any more
        (out / ENCODER_FILE).unlink(missing_ok=True)  # of the same run when it was shorter
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
            flush=ledger and ledger.flush,
            renew=ledger and renewal(ledger, loader, process, save, log.warn),
            of_sets=of_sets,
        )
    finally:
        log.close()
        if writer:
            writer.finish()
    if process.is_main:
        say(summary(finished - first_step, time.perf_counter() - began, recipe, loader))
    return finished


def _facts(recipe: Recipe, data: dict, resumed: Resumed | None) -> dict[str, object]:
    """What must be the same on all processes; paths may differ."""
    sections = recipe.plain()
    for key in ("train", "val"):
        sections["data"].pop(key)
    sections["train"].pop("out")
    return {
        "the version of headrace": headrace.__version__,
        "the version of torch": torch.__version__,
        "the number of training images": data["images"],
        "which training images there are": data,
        "the checkpoint to continue from (train.out must be seen by all)": resumed and resumed.step,
        **{f"the section {name}": section for name, section in sections.items()},
    }


if __name__ == "__main__":
    sys.exit(run_command(main))
