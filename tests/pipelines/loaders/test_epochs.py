"""`headrace.loader` against the order, the oracle and the loaders of `pretrain`; what it takes; when it ends."""

import copy
import gc
import io
import json
import os
import pickle
import select
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from PIL import Image

import headrace
from headrace.errors import UserError
from headrace.models.algorithms import find_algorithm
from headrace.pipelines import MASKS, CellMask, Order, RandomMask, ViewSpec, draw_mask, mask, open_source, view
from headrace.pipelines.views.reference import reference_views

SMALL = ViewSpec(size=24, flip=0.5, jitter=0.8, brightness=0.4)


def ids(batches):
    return [batch.ids.tolist() for batch in batches]


def epoch_ids(order, epoch):
    steps = range(epoch * order.steps_per_epoch, (epoch + 1) * order.steps_per_epoch)
    return [order.ids(step).tolist() for step in steps]


def test_batches_are_those_of_the_order_and_the_oracle(photo_folder):
    source = open_source(photo_folder)
    with headrace.loader(
        photo_folder, views="moco_cifar", batch_size=5, mask=RandomMask((2, 2), 0.5), seed=4
    ) as loader:
        assert len(loader) == 4
        for batch in loader:
            oracle = reference_views(source, loader.inputs, 4, batch.epoch, batch.ids)["image"]
            std = torch.tensor(view("moco_cifar").std).view(3, 1, 1)
            assert ((batch.views["image"] - oracle) * std * 255).abs().max() < 1.1
            assert torch.equal(batch.mask.hidden, draw_mask(loader.inputs.mask, 4, batch.epoch, batch.ids).hidden)
            assert batch.labels.tolist() == [source.label(i) for i in batch.ids.tolist()]


def test_a_loop_is_an_epoch(photo_folder):
    order = Order(24, 5, seed=1)
    with headrace.loader(photo_folder, views=SMALL, batch_size=5, seed=1) as loader:
        assert ids(loader) == epoch_ids(order, 0) and loader.epoch == 1
        for batch in loader:
            if batch.step == 5:
                break
        assert ids(loader) == epoch_ids(order, 2)  # what was left early is over
        iter(loader)  # a loop that gave nothing has not begun
        assert ids(loader) == epoch_ids(order, 3)


@pytest.mark.parametrize("stop", [1, 4, 6])
def test_a_state_continues_exactly_on_other_processes(photo_folder, stop):
    """Within an epoch, at its end, in the second one; the state is integers."""
    order = Order(24, 6, seed=2)
    whole = [order.ids(step).tolist() for step in range(12)]
    with headrace.loader(photo_folder, views=SMALL, batch_size=6, seed=2) as first:
        seen = []
        while len(seen) < stop:
            for batch in first:
                seen += ids([batch])
                if len(seen) == stop:
                    break
        state = json.loads(json.dumps(first.state_dict()))
    assert seen == whole[:stop] and {type(value) for value in state.values()} == {int}
    parts = []
    for rank in range(3):
        with headrace.loader(photo_folder, views=SMALL, batch_size=6, seed=2, rank=rank, world=3) as loader:
            loader.load_state_dict(state)
            iter(loader), iter(loader)  # asking does not move it
            parts.append(ids(loader) + ids(loader))
    together = [[i for part in step for i in part] for step in zip(*parts)]
    assert together == whole[stop : (stop // 4 + 2) * 4]


def test_a_state_of_something_else_is_refused(photo_folder):
    loader = headrace.loader(photo_folder, views=SMALL, batch_size=6)
    state = headrace.loader(photo_folder, views=SMALL, batch_size=8, seed=1).state_dict()
    with pytest.raises(UserError, match="batch_size 8, here 6; seed 1, here 0"):
        loader.load_state_dict(state)
    for step in (None, True, 1.0, "1", -1):
        with pytest.raises(UserError, match="names no step"):
            loader.load_state_dict({**loader.state_dict(), "step": step})
    for state in (None, [0], 3):
        with pytest.raises(UserError, match="not what state_dict"):
            loader.load_state_dict(state)
    loader.load_state_dict({key: torch.tensor(value) for key, value in loader.state_dict().items()})


def test_a_state_of_as_many_other_images_or_another_order_is_refused(photo_folder, tmp_path):
    for number, path in enumerate(sorted(photo_folder.rglob("*.*"))):
        if path.is_file():
            (tmp_path / f"{number}{path.suffix}").write_bytes(path.read_bytes())
    plan = {name: {"source": str(photo_folder), "weight": 1} for name in "ab"}
    other = {"a": plan["a"], "b": {**plan["b"], "weight": 2}}
    for data, changed, options in [
        (photo_folder, tmp_path, {}),
        (photo_folder, photo_folder, {"shuffle": False}),
        (photo_folder, photo_folder, {"last_batch": "pad"}),
        (photo_folder, photo_folder, {"block": 3}),
        (plan, other, {}),
    ]:
        state = headrace.loader(data, views=SMALL, batch_size=6).state_dict()
        headrace.loader(data, views=SMALL, batch_size=6, threads=1, rank=1, world=2).load_state_dict(state)
        with pytest.raises(UserError, match="its images, their order or their shares are others"):
            headrace.loader(changed, views=SMALL, batch_size=6, **options).load_state_dict(state)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it))])
@pytest.mark.parametrize("several", [False, True])
def test_a_copy_is_a_loader_of_its_own(photo_folder, copied, several):
    data = {"a": {"source": str(photo_folder)}} if several else photo_folder
    with headrace.loader(data, views=SMALL, batch_size=6) as loader:
        expected = [ids(loader), ids(loader)]
    with headrace.loader(data, views=SMALL, batch_size=6) as loader:
        loop = iter(loader)
        got = [next(loop).ids.tolist()]
        with copied(loader) as other:
            assert ids(other) == expected[1]  # no loop of it was left early but this one's epoch has begun
            assert got + ids(loop) == expected[0]


def test_a_loop_that_began_before_a_fork_is_over_in_the_child(photo_folder):
    loader = headrace.loader(photo_folder, views=SMALL, batch_size=6)
    loop = iter(loader)
    next(loop)
    read, write = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.write(write, str(next(loop).step).encode())
        except UserError as fault:
            os.write(write, str(fault).encode())
        finally:
            os._exit(0)
    os.close(write)
    answered = select.select([read], [], [], 30)[0]
    if not answered:
        os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert answered and b"began before the process was forked" in os.read(read, 1000)
    os.close(read)
    assert next(loop).step == 1


def test_two_loops_at_once_are_an_error(photo_folder):
    with headrace.loader(photo_folder, views=SMALL, batch_size=6) as loader:
        first = iter(loader)
        next(first)
        next(iter(loader))
        with pytest.raises(UserError, match="another loop over it has begun"):
            next(first)


def test_no_thread_outlives_it(photo_folder):
    def mine():
        return [thread for thread in threading.enumerate() if thread.name.startswith("headrace-")]

    gc.collect()  # loaders that other tests have left
    assert mine() == []
    loader = headrace.loader(photo_folder, views=SMALL, batch_size=6)
    assert mine() == []  # nothing starts before the first loop
    next(iter(loader))
    assert mine()
    loader.close()
    assert mine() == []
    assert len(ids(loader)) == 4 and mine()  # the next epoch
    del loader
    gc.collect()
    assert mine() == []
    with headrace.loader(photo_folder, views=SMALL, batch_size=6) as loader:
        next(iter(loader))
    assert mine() == []


TWO = """
import json, sys, torch, headrace
from headrace.pipelines import ViewSpec
loader = headrace.loader(sys.argv[1], views=ViewSpec(size=16), batch_size=6)  # before there is a process group
torch.distributed.init_process_group("gloo")
line = json.dumps([torch.distributed.get_rank(), [batch.ids.tolist() for batch in loader]])
sys.stdout.write(line + "\\n")  # at once: another process writes to the same place
torch.distributed.destroy_process_group()
"""


def test_its_place_is_that_of_the_process_group(photo_folder, tmp_path):
    (tmp_path / "two.py").write_text(TWO)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*command, tmp_path / "two.py", photo_folder], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    parts = dict(json.loads(line) for line in done.stdout.splitlines())
    order = Order(24, 6)
    assert parts == {rank: [order.ids(step, rank, 2).tolist() for step in range(4)] for rank in range(2)}


def encoded(index):
    pixels = np.random.default_rng(index).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return pixels, file.getvalue()


class Encoded(torch.utils.data.Dataset):
    def __len__(self):
        return 6

    def __getitem__(self, index):
        return encoded(index)[1], index % 3


class Opened(Encoded):
    classes = ["a", "b", "c"]
    targets = [0, 1, 2, 0, 1, 2]

    def __getitem__(self, index):
        return Image.fromarray(encoded(index)[0]), index % 3


class Mapped(Encoded):
    def __getitem__(self, index):
        return {"image": encoded(index)[1], "label": np.int64(index % 3), "more": None}


def _paths(folder):
    for index in range(6):
        (folder / f"{index}.png").write_bytes(encoded(index)[1])
    return [folder / f"{index}.png" for index in range(6)]


PIXELS = np.stack([encoded(index)[0] for index in range(6)])
LABELS = [0, 1, 2, 0, 1, 2]
GIVEN = {
    "arrays": lambda folder: (PIXELS, LABELS),
    "a tensor": lambda folder: (torch.from_numpy(PIXELS), torch.tensor(LABELS)),
    "a list of arrays": lambda folder: (list(PIXELS), LABELS),
    "paths": lambda folder: (_paths(folder), LABELS),
    "a data set of bytes": lambda folder: Encoded(),
    "a data set of images": lambda folder: Opened(),
    "a data set of mappings": lambda folder: Mapped(),
    "a source": lambda folder: open_source(f"{_paths(folder)[0].parent}"),
    "a name": lambda folder: str(_paths(folder)[0].parent),
}


@pytest.mark.parametrize("kind", GIVEN)
def test_whatever_the_images_come_in_the_pixels_are_the_same(kind, tmp_path):
    whole = ViewSpec(size=40, crop="center", center_fraction=1.0, flip=0.0, mean=(0, 0, 0), std=(1, 1, 1))
    with headrace.loader(GIVEN[kind](tmp_path), views=whole, batch_size=3, shuffle=False) as loader:
        found = [batch for _ in range(2) for batch in loader]
    images = torch.cat([batch.views["image"][0] for batch in found])
    expected = torch.from_numpy(PIXELS[:, :, 5:45]).permute(0, 3, 1, 2)  # the middle square, as it is
    assert torch.equal((images * 255).round().byte(), expected.repeat(2, 1, 1, 1))
    if kind not in ("a source", "a name"):
        assert torch.cat([batch.labels for batch in found]).tolist() == 2 * LABELS


class Endless(torch.utils.data.IterableDataset):
    def __iter__(self):
        return iter(())


class Tensors(Encoded):
    def __getitem__(self, index):
        return torch.zeros(3, 8, 8), 0


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_deep_images_of_a_data_set_keep_their_upper_bits(mode):
    values = np.random.default_rng(0).integers(0, 1 << 16, (8, 8), dtype=np.uint16)
    image = Image.fromarray(values.astype({"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]))
    if mode == "F":
        image = Image.fromarray(values.astype(np.float32) / 65535)
    assert image.mode == mode

    class Deep(torch.utils.data.Dataset):
        def __len__(self):
            return 2

        def __getitem__(self, index):
            return image, index

    with headrace.loader(Deep(), views=ViewSpec(size=8, crop="center", center_fraction=1.0), batch_size=2) as loader:
        (batch,) = loader
    std, mean = (torch.tensor(getattr(loader.inputs.views[0], key)).view(3, 1, 1) for key in ("std", "mean"))
    found = ((batch.views["image"][0, 0] * std + mean) * 255).round().numpy()
    expected = values >> 8 if mode != "F" else np.round(values / 65535 * 255)
    assert np.abs(found - expected).max() <= 1


@pytest.mark.parametrize(
    "change, message",
    [
        ({"views": "moco_v22"}, "views: no view is named 'moco_v22'; did you mean moco_v2?"),
        ({"views": []}, "views: needs a name such as 'moco_v2', or ViewSpecs"),
        ({"mask": "may"}, "mask: no mask is named 'may'; did you mean mae?"),
        ({"views": ViewSpec(size=40), "mask": "mae"}, "patches of 16 px, which do not divide a view of 40"),
        ({"batch_size": 25}, "24 images do not fill one global batch of 25"),
        ({"rank": 1}, "rank, world: give both or neither"),
        ({"rank": 3, "world": 3}, "process 3 of 3 does not exist"),
        ({"loader": "ffcv"}, "ffcv reads .beton files"),
        ({"pixels": "yuv"}, "pixels: needs auto"),
        ({"data": "nowhere"}, "nowhere: does not exist"),
        ({"data": np.zeros((4, 3, 8, 8), np.uint8)}, "images of (H, W, 3); got ndarray of (4, 3, 8, 8)"),
        ({"data": np.zeros((4, 8, 8, 3), np.float32)}, "images hold float32; give uint8"),
        ({"data": (["missing.jpg"], [0])}, "missing.jpg does not exist"),
        ({"data": Endless()}, "Endless: has no length"),
        ({"batch_size": "8"}, "batch_size: needs a whole number from 1 on, got '8'"),
        ({"batch_size": 6.0}, "batch_size: needs a whole number from 1 on, got 6.0"),
        ({"seed": None}, "seed: needs a whole number, got None"),
        ({"threads": 0}, "threads: needs a whole number from 1 on, got 0"),
        ({"block": "shards"}, "block: needs a whole number from 1 on, got 'shards'"),
        ({"loader": "cup"}, "loader: needs auto or cpu or dali"),
        ({"last_batch": "keep"}, "last_batch: needs drop or pad, got 'keep'"),
        ({"shuffle": "no"}, "shuffle: needs True or False, got 'no'"),
        ({"dtype": torch.int32}, "dtype: needs a type of floating point"),
        ({"dtype": "float32"}, "dtype: needs a type of floating point"),
        ({"max_bad": 30}, "max_bad: needs a share of the images from 0 to 1, got 30"),
        ({"device": "gpu"}, "device: needs 'cpu', 'cuda', 'cuda:1' or 'auto', got 'gpu'"),
        ({"device": "meta"}, "device: needs 'cpu'"),
        ({"mask": 0.75}, "mask: needs a name such as 'mae', or a mask, got 0.75"),
        ({"views": None}, "views: needs a name such as 'moco_v2', or ViewSpecs"),
        ({"rank": "0", "world": "2"}, "rank: needs a whole number, got '0'"),
        ({"data": 5}, "images of (H, W, 3); got int"),
        ({"data": (path for path in "ab")}, "images of (H, W, 3); got generator"),
        ({"data": [Image.new("RGB", (8, 8))] * 8}, "images of (H, W, 3); got list"),
        ({"data": np.zeros((8, 0, 8, 3), np.uint8)}, "images of (H, W, 3); got ndarray of (8, 0, 8, 3)"),
        ({"data": (PIXELS, [0.5] * 6)}, "arrays: label 0.5 of number 0: classes are whole numbers from 0"),
        ({"data": (PIXELS, [0] * 5 + [-2])}, "arrays: label -2 of number 5"),
        ({"data": (PIXELS, [2**40] * 6)}, "arrays: label 1099511627776 of number 0"),
        ({"data": (PIXELS, ["cat"] * 6)}, "arrays: labels are no list of class numbers"),
        ({"data": (PIXELS, np.zeros((6, 2), int))}, "arrays: labels are no list of class numbers"),
        ({"data": Tensors()}, "Tensors[0]: is Tensor, not the bytes of an image file or a Pillow image"),
    ],
)
def test_what_cannot_be_done_is_one_line(photo_folder, change, message):
    given = {"data": photo_folder, "views": SMALL, "batch_size": 6} | change
    with pytest.raises(UserError) as caught:
        next(iter(headrace.loader(given.pop("data"), **given)))
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_bad_images_are_replaced_and_written_down(tmp_path):
    paths = _paths(tmp_path)
    paths[2].write_bytes(b"no image")
    data = [*paths] * 50
    with headrace.loader(data, views=SMALL, batch_size=6, quarantine=tmp_path / "bad.jsonl", max_bad=0.5) as loader:
        seen = [i for batch in ids(loader) for i in batch]
    rows = [json.loads(line) for line in (tmp_path / "bad.jsonl").read_text().splitlines()]
    assert len(seen) == 300 and {row["index"] % 6 for row in rows} == {2} and not {i % 6 for i in seen} & {2}
    with headrace.loader(data, views=SMALL, batch_size=6) as loader, pytest.raises(UserError, match="max_bad"):
        list(loader)


@pytest.mark.parametrize("name", sorted(MASKS.keys() - {"ibot", "ijepa"}))
def test_named_masks_are_those_of_the_methods(name):
    if name == "simmim_vit":
        assert mask(name, 224) == CellMask(grid=(14, 14), cell=2, ratio=0.6)
        return
    algorithm = find_algorithm(name)
    config = algorithm.Config(name=name) if name != "pixmim" else algorithm.Config()
    assert mask(name, config.view.size) == config.mask


def test_a_named_mask_keeps_its_share_at_other_sizes():
    assert mask("mae", 96).grid == (6, 6) and mask("mae", 96).hidden == 27
    assert mask("beit", 448).hidden == 300 and mask("beit", 448).grid == (28, 28)
