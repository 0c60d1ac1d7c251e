"""What a run leaves when its last step is taken, by whatever process."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from ..models.algorithm import Algorithm
from ..models.backbones.low_rank import merged
from ..pipelines.loaders.quarantine import QUARANTINE_FILE, Quarantine
from .engine import checkpoint
from .engine.distributed import Launch
from .engine.metrics import say
from .engine.run_directory import CONFIG_FILE, ENCODER_FILE, has_ended, write_encoder, write_whole
from .engine.sharding import gathered
from .recipe.recipe import Recipe
from .resume import Resumed, restore_weights


def end(
    resumed: Resumed, recipe: Recipe, process: Launch, algorithm: Algorithm, quarantine: Quarantine, total_steps: int
) -> None:
    """What is missing behind the last step, which another process has taken and then, perhaps, been killed."""
    out, state = recipe.out, resumed.state
    if process.gather(has_ended(out))[0]:
        if process.is_main:
            say(f"done before: {out}/{ENCODER_FILE}, after {resumed.step:,} of {total_steps:,} steps")
            if resumed.changed:
                say("headrace: no step is left that could be taken with the changes; raise train.epochs", sys.stderr)
        return
    restore_weights(resumed, algorithm)
    weights = gathered(algorithm.encoder.state_dict())
    if process.is_main:
        if not checkpoint.checkpoints(out):  # train.resume has named one elsewhere
            config = state["config"]
            own = {**state, "config": {**config, "train": {**config["train"], "resume": recipe.train.resume}}}
            checkpoint.save(out, resumed.step, own, keep=1)
        if not (out / CONFIG_FILE).exists():
            write_whole(out / CONFIG_FILE, recipe.resolved.encode())
        finish(out, weights, state["config"], quarantine)
    process.barrier()


def finish(out: Path, weights: dict[str, torch.Tensor], recipe: dict, quarantine: Quarantine) -> None:
    """Writes the encoder alone, of a recipe in plain values, and reports what was replaced."""
    quarantine.refresh()
    write_encoder(out, merged(weights), checkpoint.encoder_metadata(recipe))
    if quarantine:
        say(f"{len(quarantine):,} images could not be decoded and were replaced by others ({out / QUARANTINE_FILE}):")
        say("\n".join(f"  {line}" for line in quarantine.lines(10)))
    say(f"done: {out}/{ENCODER_FILE}")
