"""Several processes: what one of them suffers, all learn, soon and in words."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch.distributed as dist
from safetensors.torch import load_file

import headrace
from headrace.benchmarks import faults, processes
from headrace.errors import ProcessError, UserError
from headrace.train.engine import checkpoint
from headrace.train.engine.distributed import _meet
from headrace.train.engine.metrics import read_metrics
from headrace.train.engine.sharding import check_shardable
from headrace.train.recipe.recipe import load_recipe

ROOT = Path(headrace.__file__).parent
SMALL = ["mae_vit-tiny", "--smoke", "train.log_every=1", "optim.lr=1e-4"]


@pytest.fixture
def run(tmp_path):
    """run(name, *overrides, **options) -> exit codes; what was said is in <name>.log, the run in <name>."""

    def run(name, *overrides, **options):
        arguments = [*SMALL, f"train.out={tmp_path / name}", *overrides]
        return processes.run(arguments, tmp_path / f"{name}.log", **options)

    return run


def losses(folder):
    return [row["loss"] for row in read_metrics(folder)]


def test_another_number_of_processes_continues_the_same_order(run, tmp_path):
    """Two processes, then one, then two: the curve of one process throughout, to rounding."""
    assert run("whole") == [0]
    assert run("mixed", "train.max_steps=7", "optim.schedule=constant", "optim.warmup=0", world=2) == [0, 0]
    assert run("whole2", "optim.schedule=constant", "optim.warmup=0") == [0]
    assert run("mixed", "train.max_steps=13", "optim.schedule=constant", "optim.warmup=0") == [0]
    assert run("mixed", "optim.schedule=constant", "optim.warmup=0", world=2) == [0, 0]
    assert losses(tmp_path / "mixed") == pytest.approx(losses(tmp_path / "whole2"), rel=1e-4)


def test_not_a_number_on_one_process_skips_the_step_on_both(run, tmp_path):
    assert run("nan", "train.save_every=1", "train.keep=9", world=2, fault=("nan", 4, 1)) == [0, 0]
    rows = {row["step"]: row for row in read_metrics(tmp_path / "nan")}
    assert [step for step, row in rows.items() if "skipped" in row] == [5]
    before, after = (checkpoint.load(p)["model"] for p in checkpoint.checkpoints(tmp_path / "nan")[-2:])
    assert all(value.isfinite().all() for value in after.values())


def test_a_killed_process_ends_the_others_and_the_next_run_continues(run, tmp_path):
    assert run("whole", world=2) == [0, 0]
    codes = run("killed", "train.save_every=2", world=2, fault=("signal", 7, 1, "SIGKILL"))
    assert codes == [2, -9]
    said = (tmp_path / "killed.log").read_text()
    assert "process 0 of 2: process 1 no longer answers, so this one ends" in said
    assert checkpoint.newest(tmp_path / "killed")[1]["step"] == 6
    assert run("killed", world=2) == [0, 0]
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")


def test_a_process_that_hangs_is_named(run, tmp_path):
    started = processes.start(
        [*SMALL, f"train.out={tmp_path / 'hung'}", "train.timeout=3"],
        tmp_path / "hung.log",
        world=2,
        fault=("hang", 3, 1),
    )
    assert processes.finish(started[:1], timeout=60) == [2]
    started[1].kill()
    assert "process 1 no longer answers" in (tmp_path / "hung.log").read_text()


def test_a_signal_to_one_process_stops_both_at_the_same_step(run, tmp_path):
    assert run("stopped", world=2, fault=("signal", 5, 1, "SIGTERM")) == [0, 0]
    step = checkpoint.newest(tmp_path / "stopped")[1]["step"]
    assert 6 <= step <= 8
    assert "stopped by a signal to another process after step" in (tmp_path / "stopped.log").read_text()
    assert run("stopped", world=2) == [0, 0] and len(losses(tmp_path / "stopped")) == 20


def test_processes_that_were_told_different_things(tmp_path):
    port = str(processes.free_port())
    started = []
    for rank, lr in enumerate(("1e-4", "2e-4")):
        environment = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        started += processes.start(
            [*SMALL, f"train.out={tmp_path / 'run'}", f"optim.lr={lr}"],
            tmp_path / "log",
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=port,
            **environment,
        )
    assert processes.finish(started) == [2, 2]
    said = (tmp_path / "log").read_text()
    assert "headrace: the processes do not agree on the section optim: " in said and "on process 1" in said
    assert not (tmp_path / "run").exists()


def test_a_process_that_never_came(tmp_path):
    environment = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    environment["MASTER_PORT"] = str(processes.free_port())
    started = processes.start(
        [*SMALL, f"train.out={tmp_path / 'run'}", "train.timeout=2"], tmp_path / "log", **environment
    )
    assert processes.finish(started, timeout=60) == [2]
    assert "process 0 of 2: the others did not come" in (tmp_path / "log").read_text()


def test_sharded_weights_make_the_same_run(run, tmp_path):
    """FSDP2 on two processes, continued by one without, then by two with it: the curve of one, and its weights."""
    options = ["optim.lr=0.01", "optim.warmup=0", "optim.schedule=constant", "optim.clip_grad=0.1"]
    assert run("whole", *options) == [0]
    assert run("mixed", *options, "train.shard=true", "train.max_steps=7", world=2) == [0, 0]
    assert run("mixed", *options, "train.max_steps=12") == [0]
    assert run("mixed", *options, "train.shard=true", world=2) == [0, 0]
    assert losses(tmp_path / "mixed") == pytest.approx(losses(tmp_path / "whole"), rel=1e-3)
    whole, mixed = (checkpoint.newest(tmp_path / name)[1] for name in ("whole", "mixed"))
    assert mixed["model"].keys() == whole["model"].keys()
    for key, value in whole["model"].items():
        assert (mixed["model"][key] - value).abs().max() < 5e-3, key
    assert (
        load_file(tmp_path / "mixed" / "encoder.safetensors").keys()
        == load_file(tmp_path / "whole" / "encoder.safetensors").keys()
    )
    moments = [state["optimizer"]["state"][0]["exp_avg"].shape for state in (whole, mixed)]
    assert moments[0] == moments[1]


def test_gram_anchoring_with_sharded_weights(tmp_path):
    """Its teacher becomes a copy of shares of the run's: curve and weights of one process."""
    options = ["dinov3_vit-tiny_cifar10", "--smoke", "train.log_every=1", "train.max_steps=8", "optim.warmup=0"]
    options += ["optim.lr=1e-3", "algorithm.momentum=0.8", "algorithm.gram={from: 2 steps, update_every: 2 steps}"]
    for name, more, world in (("whole", [], 1), ("shared", ["train.shard=true"], 2)):
        out = [*options, *more, f"train.out={tmp_path / name}"]
        assert processes.run(out, tmp_path / f"{name}.log", world=world) == [0] * world
    assert losses(tmp_path / "shared") == pytest.approx(losses(tmp_path / "whole"), rel=1e-3)
    gram = [row["metrics"]["loss_gram"] for row in read_metrics(tmp_path / "shared")]
    assert gram[:2] == [0, 0] and min(gram[4:]) > 0
    whole, shared = (checkpoint.newest(tmp_path / name)[1]["model"] for name in ("whole", "shared"))
    assert any(key.startswith("gram.backbone.") for key in whole) and whole.keys() == shared.keys()
    for key, value in whole.items():
        assert (shared[key] - value).abs().max() < 5e-3, key


def test_what_does_not_go_with_sharded_weights(tmp_path):
    for option, reason in (("optim.name=lars", "norms of whole tensors"), ("train.precision=fp16", "fp32 and bf16")):
        recipe = load_recipe("mae_vit-tiny", ["train.shard=true", option])
        with pytest.raises(UserError, match=f"train.shard: .*{reason}"):
            check_shardable(recipe.train, recipe.optim)


def test_killed_again_and_again(tmp_path):
    """At random instants, each time continued by the same command: not a bit is different."""
    kills, steps, _, same = faults.cycles(faults.Bench(tmp_path), 5)
    assert (kills, steps, same) == (5, 30, True)


def test_processes_meet_although_the_store_remembers_others():
    """As after a restart: the names of processes that are gone are still there."""
    store = dist.HashStore()
    store.set("headrace/token/1", "gone")
    store.set("headrace/answer/1", "gone/elsewhere")
    with ThreadPoolExecutor(2) as pool:
        parts = list(pool.map(lambda rank: _meet(store, rank, 2, 20), (0, 1)))
    parts[0].set("here", "yes")
    assert parts[1].get("here") == b"yes" and not store.check(["headrace/elsewhere/here"])
    with pytest.raises(ProcessError, match="process 0 of 3: processes 1, 2 did not come within 0.1 s"):
        _meet(dist.HashStore(), 0, 3, 0.1)


def torchrun(folder, name, *options):
    """An agent of torchrun with this module's small run; what is said goes to <name>.log."""
    command = [sys.executable, "-m", "torch.distributed.run", "--rdzv-backend", "c10d", "--rdzv-id", "x", *options]
    command += [str(ROOT / "train" / "pretrain.py"), *SMALL, "algorithm.name=own.fragile.Fragile", "train.save_every=3"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with open(folder / f"{name}.log", "w") as log:
        return subprocess.Popen(
            [*command, f"train.out={folder / 'two'}"], cwd=folder, env=environment, stdout=log, stderr=log
        )


@pytest.mark.parametrize("nodes", [1, 2])
def test_torchrun(nodes, run, tmp_path):
    """One agent with two processes, one of which is killed once, or two agents as two nodes: the curve of one."""
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "fragile.py").write_text(
        "import os, signal\n"
        "from dataclasses import dataclass\n"
        "from typing import Literal\n"
        "from headrace.models.algorithms.mae import MAE\n"
        "class Fragile(MAE):\n"
        "    @dataclass(frozen=True)\n"
        "    class Config(MAE.Config):\n"
        "        name: Literal['own.fragile.Fragile'] = 'own.fragile.Fragile'\n"
        "    def after_step(self, progress):\n"
        "        kill = os.environ['LOCAL_RANK'] == '1' and os.environ['TORCHELASTIC_RESTART_COUNT'] == '0'\n"
        "        if progress.step == 6 and kill:\n"
        "            os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    options = ["--nnodes", str(nodes), "--nproc-per-node", str(2 // nodes), "--max-restarts", "1"]
    options += ["--rdzv-endpoint", f"127.0.0.1:{processes.free_port()}"]
    agents = [torchrun(tmp_path, f"agent{node}", *options) for node in range(nodes)]
    codes = [agent.wait(timeout=200) for agent in agents]
    said = "".join((tmp_path / f"agent{node}.log").read_text() for node in range(nodes))
    assert codes == [0] * nodes, said[-3000:]
    assert (" at step 6" in said) == (nodes == 1)  # where the second attempt began
    assert run("one") == [0]
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)
