"""docs/loader.md: each loop runs as it stands, in a process of its own, where its package is installed."""

import json
import re
import subprocess
import sys
from importlib.util import find_spec

import pytest
from pages import blocks, pages

from headrace.pipelines import Order

NEEDS = {  # file of the page -> the extra it needs, and the packages of that
    "plain_loop.py": ("", ()),
    "notebook.py": ("", ()),
    "lightning_loop.py": ("lightning", ("lightning",)),
    "accelerate_loop.py": ("accelerate", ("accelerate",)),
    "trainer_loop.py": ("accelerate", ("accelerate", "transformers")),
    "lightly_loop.py": ("lightly", ("lightly",)),
    "timm_loop.py": ("timm", ("timm",)),
}
SAYS = {  # 24 photos in batches of 8: an epoch has 3 steps
    "plain_loop.py": r"epoch 1: 3 batches, loss 0\.\d+",
    "notebook.py": r"runs/notebook \(24, \d+\)\n\[\{'k': 1, .*'top1': 1.0",
    "lightning_loop.py": "6 steps",
    "accelerate_loop.py": "continues with step 2",
    "trainer_loop.py": "next: 5\n(.*\n)*next: 5",
    "lightly_loop.py": r"loss \d\.\d+",
    "timm_loop.py": r"epoch 1: loss \d\.\d+",
}


def files():
    named = [(re.match(r"# (\S+\.py)\n", text), text) for language, text in blocks(pages()["loader.md"])]
    return {match[1]: text for match, text in named if match}


def needs(extra, packages):
    for package in packages:
        if find_spec(package) is None:
            pytest.skip(f"needs the extra [{extra}]")


def test_every_loop_of_the_page_is_tested():
    assert files().keys() == NEEDS.keys() == SAYS.keys()


@pytest.mark.parametrize("name", NEEDS)
def test_loop(name, photo_folder, tmp_path):
    needs(*NEEDS[name])
    (tmp_path / "photos").symlink_to(photo_folder)
    (tmp_path / name).write_text(files()[name])
    done = subprocess.run([sys.executable, name], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert re.search(SAYS[name], done.stdout), done.stdout[-2000:]


TWO = """
import json, os, sys
import lightning, torch, headrace

FOLDER, STOP = sys.argv[1], int(sys.argv[2])
RESUME = sys.argv[3] if len(sys.argv) > 3 else None
ids = []

class Model(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(3 * 32 * 32, 4)

    def train_dataloader(self):
        return headrace.loader("photos", views="moco_cifar", batch_size=8, last_batch="pad", seed=3)

    def training_step(self, batch, _):
        ids.append([batch.step, batch.ids.tolist()])
        return self.linear(batch.views["image"].flatten(2)).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)

class Interrupt(lightning.Callback):
    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == STOP:
            trainer.save_checkpoint(f"{FOLDER}.ckpt")
            write(trainer)
            trainer.strategy.barrier()
            os._exit(0)

def write(trainer):
    with open(f"{FOLDER}.{trainer.global_rank}.json", "w") as file:
        json.dump(ids, file)

trainer = lightning.Trainer(
    max_epochs=3, accelerator="cpu", devices=2, strategy="ddp", logger=False, enable_checkpointing=False,
    enable_progress_bar=False, enable_model_summary=False, callbacks=[Interrupt()],
)
trainer.fit(Model(), ckpt_path=RESUME)
write(trainer)
"""


def test_lightning_on_two_processes_continues_in_the_middle_of_an_epoch(photo_folder, tmp_path):
    """Lightning wraps nothing in a sampler: the ids are those of the order, each once an epoch, and stay so."""
    needs("lightning", ("lightning",))
    (tmp_path / "photos").symlink_to(photo_folder)
    (tmp_path / "two.py").write_text(TWO)

    def run(*words):
        done = subprocess.run([sys.executable, "two.py", *words], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        return [json.loads((tmp_path / f"{words[0]}.{rank}.json").read_text()) for rank in range(2)]

    first, rest = run("first", "4"), run("rest", "0", "first.ckpt")
    order = Order(24, 8, seed=3, last="pad")
    for rank in range(2):
        assert first[rank] == [[step, order.ids(step, rank, 2).tolist()] for step in range(4)]
        assert rest[rank] == [[step, order.ids(step, rank, 2).tolist()] for step in range(4, 9)]
    for epoch in range(3):
        read = [i for rank in range(2) for step, ids in first[rank] + rest[rank] if step // 3 == epoch for i in ids]
        assert sorted(read) == list(range(24))
