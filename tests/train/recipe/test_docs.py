"""docs/training.md says what there is: every field, valid examples, and a job script that sets what is read."""

import os
import re
import subprocess
from dataclasses import fields
from pathlib import Path

import pytest

import headrace
from headrace.schema.yaml_nodes import parse
from headrace.train.recipe import config
from headrace.train.recipe.settings import (
    AdamWSettings,
    GroupRule,
    LAMBSettings,
    LARSSettings,
    OwnOptimSettings,
    SGDSettings,
    TrainSettings,
)

PAGE = (Path(headrace.__file__).parent / "docs" / "training.md").read_text()
OPTIMIZERS = (AdamWSettings, SGDSettings, LARSSettings, LAMBSettings, OwnOptimSettings)


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.M | re.S)


def documented(heading):
    """The fields in the first column of the first table after a line that begins with these words."""
    table = PAGE.partition(f"\n{heading}")[2].partition("|---|")[2].partition("\n\n")[0]
    names = [row.split("|")[1] for row in table.splitlines() if row.count("|") > 3]
    return {name for cell in names for name in re.findall(r"`(\w+)`", cell)}


def test_every_field_is_documented_and_nothing_else():
    names = {field.name for kind in OPTIMIZERS for field in fields(kind)} - {"name"}
    assert documented("## The `optim` section") == names
    assert documented("A rule in `groups`") == {field.name for field in fields(GroupRule)}
    assert documented("## The `train` section") == {field.name for field in fields(TrainSettings)}


@pytest.mark.parametrize("text", blocks("yaml"))
def test_examples_are_valid(text):
    tree = config.Tree(parse(text, lambda line: f"docs:{line}"))
    optim = config.build(tree, {"optim": AdamWSettings | SGDSettings | LARSSettings | LAMBSettings})["optim"]
    assert f"name: {optim.name}" in text


def test_the_job_script(tmp_path):
    """Two tasks that srun would start see what `distributed.launch` reads; an unfinished run is queued again."""
    (script,) = blocks("bash")
    tools = {
        "scontrol": '#!/bin/bash\n[ $1 = show ] && echo node0 && echo node1 || echo "$@" >> said',
        "srun": "#!/bin/bash\nfor i in 0 1; do SLURM_PROCID=$i SLURM_LOCALID=$i SLURM_NTASKS=2 "
        'SLURM_NTASKS_PER_NODE=2 "$@" || exit; done',
        "headrace": '#!/bin/bash\necho "$RANK $WORLD_SIZE $LOCAL_RANK $LOCAL_WORLD_SIZE $MASTER_ADDR $*" >> said\n'
        "exit $(cat code)",
    }
    for name, text in tools.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
    command = "pretrain mae_vit-tiny data.train=shards train.out=runs/mae"

    def said(code):
        (tmp_path / "code").write_text(str(code))
        (tmp_path / "said").write_text("")
        subprocess.run(["bash", "-c", script], cwd=tmp_path, env=environment, timeout=20)
        return (tmp_path / "said").read_text().splitlines()

    ranks = [f"{i} 2 {i} 2 node0 {command}" for i in (0, 1)]
    assert said(0) == [*ranks, "requeue 7"]
    assert said(2) == ranks[:1]
    (tmp_path / "runs" / "mae").mkdir(parents=True)
    (tmp_path / "runs" / "mae" / "encoder.safetensors").touch()
    assert said(0) == ranks
