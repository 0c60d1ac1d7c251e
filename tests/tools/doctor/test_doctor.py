"""Measurements add up, and the advice follows from them: synthetic cases with one fault each."""

import dataclasses
import json
import re

import pytest
import torch

from headrace.errors import UserError
from headrace.pipelines.shard import shard
from headrace.pipelines.sources import open_source
from headrace.tools.doctor import measure as doctor_measure
from headrace.tools.doctor.advice import PREPARATION, Measured, Timing, advise, binding, max_side
from headrace.tools.doctor.doctor import main, table
from headrace.tools.doctor.measure import measure
from headrace.train.recipe.recipe import load_recipe


def timing(microseconds):
    return Timing(microseconds, 0.9 * microseconds, 1.2 * microseconds)


STAGES = {"read, cold": 250, "read, warm": 10, "header": 5, "draw": 15, "decode": 2500, "crop and resize": 500}
STAGES = {name: timing(us) for name, us in (STAGES | {"augment": 970}).items()}
SOUND = Measured(  # 8 cores, a loader that is as fast as they allow, a model that is slower
    stages=STAGES,
    together=timing(4000),
    loaders={"cpu": timing(500), "dali": timing(550)},
    loader="cpu",
    cores=8,
    threads=8,
    torch_threads=8,
    gpu=None,
    folder=False,
    images=1_000_000,
    image_bytes=110_000,
    height=375,
    width=500,
    crop=224,
    memory=256_000_000_000,
    model=timing(2000),
    training=timing(2100),
)


def case(**changes):
    return dataclasses.replace(SOUND, **changes)


def stages(**microseconds):
    return STAGES | {name.replace("_", " "): timing(us) for name, us in microseconds.items()}


def test_a_model_that_binds_needs_no_remedy():
    assert binding(SOUND) == ("the model", 500)
    assert advise(SOUND) == ["the model binds at 500 images/s; the cpu loader delivers 2,000, 4.0 times as many"]


FEED = "the model takes 10,000 images/s: about 40 cores like these feed it"
CASES = {  # measured, the start of the first line, and a pattern for each line after it
    "a faster loader": (
        case(model=timing(100), loaders={"cpu": timing(500), "dali": timing(250)}),
        "the cpu loader binds at 2,000 images/s",
        ["data.loader=dali delivers 4,000 images/s here", FEED],
    ),
    "idle cores": (
        case(model=timing(1000), threads=2, loaders={"cpu": timing(2000)}),
        "the cpu loader binds at 500 images/s",
        [r"data.threads=8 \(now 2\): up to 2,000 images/s", "the model takes 1,000 images/s: about 16 cores"],
    ),
    "decoding": (  # 100,000 images of 375 x 500 px
        case(model=timing(100), images=100_000, pixels={"rgb": timing(300), "yuv420": timing(200)}, free=30 * 10**9),
        "the cpu loader binds at 2,000 images/s",
        [
            "yuv420: 28.1 GB, 5,000 images/s as measured: headrace pixels DATA --format yuv420",
            "rgb: 56.2 GB, 3,330 images/s as measured: but 30.0 GB are free",
            FEED,
        ],
    ),
    "a disk that is slower than decoding": (  # 110 kB in 250 us are 440 MB/s, of which 281 kB make 1,564 images
        case(model=timing(100), pixels={"yuv420": timing(200)}, free=10**12),
        "the cpu loader binds at 2,000 images/s",
        ["yuv420: 281.2 GB, 1,560 images/s as measured, from a disk that reads 440 MB/s: not worth it", FEED],
    ),
    # of 4,000 us 2,500 are decoding; (448 / 2240)^2 of the pixels leave 100 of them: 1,600 us, 2.5 times the rate
    "large images": (
        case(model=timing(100), width=2240, height=1680),
        "the cpu loader binds at 2,000 images/s",
        ["10.0 times as long as a view: .* --max-side 448 saves 60% of the work, up to 5,000 images/s", FEED],
    ),
    "colours on cores": (  # 4,470 us of 7,500
        case(model=timing(100), stages=stages(augment=4470)),
        "the cpu loader binds",
        ["augmentation is 60% of the work: .* up to 4,950 images/s", FEED],
    ),
    "loose files": (  # 1,015 us of 5,000
        case(model=timing(100), folder=True, stages=stages(header=1005)),
        "the cpu loader binds",
        ["opening files and reading headers is 20% of the work, .* up to 2,510 images/s", FEED],
    ),
    "nothing but more cores": (case(model=timing(100)), "the cpu loader binds", [FEED]),
    "no model measured": (
        case(model=None, training=None),
        "the cpu loader binds at 2,000 images/s, the model apart: --model",
        ["62% of the work is decode; 16 cores would deliver about 4,000 images/s"],
    ),
    "a slow disk": (
        case(stages=STAGES | {"read, cold": timing(10_000)}, memory=32_000_000_000, folder=True),
        "storage binds at 100 images/s",
        ["the set is 110 GB and memory 32 GB", "--max-side 448: about 88 GB", "tars are read ahead"],
    ),
    "a slow link": (
        case(gpu="some GPU", stages=STAGES | {"copy to GPU": timing(4000)}),
        "the copy to the GPU binds at 250 images/s",
        ["smaller views"],
    ),
    "few torch threads": (
        case(torch_threads=2),
        "the model binds",
        ["torch uses 2 of 8 cores: set OMP_NUM_THREADS=8"],
    ),
    "shared cores": (case(model=timing(510)), "the model binds", ["on CPUs both share the cores"]),
    "a missing package": (
        case(missing={"ffcv": "pip install ffcv"}),
        "the model binds",
        ["ffcv is not installed: pip install ffcv"],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_advice_names_the_fault_and_what_mending_it_gives(name):
    measured, first, others = CASES[name]
    lines = advise(measured)
    assert lines[0].startswith(first) and len(lines) == 1 + len(others), lines
    for pattern, line in zip(others, lines[1:]):
        assert re.search(pattern, line), line


def test_the_remedy_that_gives_most_comes_first():
    lines = advise(
        case(model=timing(100), threads=4, width=2240, height=1680, loaders={"cpu": timing(500), "dali": timing(400)})
    )
    rates = [int(re.search(r"([\d,]+) images/s", line)[1].replace(",", "")) for line in lines[1:4]]
    assert rates == [5000, 4000, 2500]


def test_no_advice_without_its_cause():
    """A disk that is slow but read once, images not much larger than a view, a GPU that augments."""
    slow_but_once = case(stages=STAGES | {"read, cold": timing(10_000)})
    assert binding(slow_but_once)[0] == "the model" and slow_but_once.in_memory
    text = " ".join(advise(case(model=timing(100), gpu="some GPU", stages=stages(augment=4470), torch_threads=1)))
    assert not any(word in text for word in ("max-side", "augmentation", "OMP_NUM_THREADS", "shard"))
    assert max_side(case(crop=96)) == 192


TINY = ["algorithm.view.size=64", "train.batch_size=8", "train.device=cpu", "data.threads=2"]


@pytest.fixture(scope="module")
def measured(photo_folder):
    torch.set_num_threads(2)
    recipe = load_recipe("simclr_resnet18", TINY)
    return measure(open_source(photo_folder), recipe, 4, with_model=True)


def test_stages_add_up(measured):
    """On shared cores a run can be disturbed: what matters is that no part is missing and none is counted twice."""
    assert set(PREPARATION) <= set(measured.stages) and "read, cold" in measured.stages
    assert 0.6 < measured.together.median / measured.parts < 1.7
    for one in (*measured.stages.values(), *measured.loaders.values(), measured.together, measured.model):
        assert 0 < one.p20 <= one.median <= one.p80
    assert {"cpu", "dali", "memory"} >= set(measured.loaders) and measured.loader in measured.loaders
    # data and model on the same cores: together no faster than the slower one, no slower than both in turn
    slower = max(measured.model.median, measured.loaders[measured.loader].median)
    assert 0.5 * slower < measured.training.median < 3 * (slower + measured.parts)


def test_what_is_measured_is_the_set(measured, photo_folder):
    source = open_source(photo_folder)
    sizes = [len(source.read(i)) for i in range(24)]
    assert measured.images == 24 and measured.folder and measured.threads == 2 and measured.crop == 64
    assert measured.image_bytes == pytest.approx(sum(sizes) / 24)
    assert 60 <= measured.height <= 140 and 60 <= measured.width <= 140 and measured.in_memory


def test_an_added_delay_appears_in_its_stage(photo_folder, monkeypatch):
    """5 ms more in decoding, and nowhere else but in the whole."""
    import time

    recipe = load_recipe("mae_vit-tiny", [*TINY, "algorithm.backbone.patch_size=16", "data.loader=cpu"])
    decode = doctor_measure.cut.decode_fast
    monkeypatch.setattr(doctor_measure.cut, "decode_fast", lambda data: (time.sleep(0.005), decode(data))[1])
    slow = measure(open_source(photo_folder), recipe, 2, with_model=False)
    assert slow.stages["decode"].median > 5000 and slow.together.median > 5000
    assert all(slow.stages[name].median < 2500 for name in PREPARATION if name != "decode")


def test_threads_of_torch_are_given_back(measured):
    assert torch.get_num_threads() == 2


def test_the_command_prints_a_table_and_writes_json(photo_folder, tmp_path, capsys):
    shard(photo_folder, tmp_path / "shards", progress=False)
    arguments = [str(tmp_path / "shards"), "mae_vit-tiny", *TINY, "algorithm.backbone.patch_size=16"]
    assert main([*arguments, "--seconds", "2", "--json", str(tmp_path / "report.json")]) == 0
    report, printed = json.loads((tmp_path / "report.json").read_text()), capsys.readouterr().out
    assert report["images"] == 24 and not report["folder"] and "read, cold" in report["stages"]
    for line in report["advice"]:
        assert line in printed
    decode = next(line for line in printed.splitlines() if line.startswith("decode"))
    assert f"{report['stages']['decode']['median']:,.0f}" in decode
    assert report["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]


def test_the_table_has_a_row_for_everything_measured():
    text = "\n".join(table(SOUND))
    for name in (*PREPARATION, "read, cold", "loader cpu (chosen)", "loader dali", "model + loader cpu"):
        assert re.search(rf"^{re.escape(name)}  ", text, re.M), name
    assert re.search(r"^read, cold +250 +225 - 300 +4,000 +440$", text, re.M)  # 110 kB in 250 us
    assert "their sum is 4,000 us, together they take 100% of it" in text


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["{photos}", "simclr_resnet81"], "did you mean simclr_resnet18?"),
        (["{photos}z", "mae_vit-tiny"], "photos"),
        (["{photos}", "mae_vit-tiny", "--seconds", "0"], "--seconds"),
        (["{photos}", "mae_vit-tiny", "train.batch_size=0"], "batch_size"),
        (["{bad}", "mae_vit-tiny"], "no image that can be decoded"),
    ],
)
def test_mistakes_end_in_one_line(arguments, words, photo_folder, tmp_path):
    (tmp_path / "x.jpg").write_bytes(b"no image")
    with pytest.raises(UserError) as caught:
        main([argument.format(photos=photo_folder, bad=tmp_path) for argument in arguments])
    assert words in str(caught.value) and "\n" not in str(caught.value)
