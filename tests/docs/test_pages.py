"""Every command that a page shows is run, on small made data, or for a stated reason only parsed."""

import importlib
import re
import shlex
import shutil
from importlib.util import find_spec

import pytest
import torch
from made import make_deep, make_voc
from pages import COMMAND_WORDS, COMMANDS, ROOT, Page, blocks, commands, indented, pages, parse, run, standing_in

from headrace.errors import UserError

# Commands that are only parsed, their recipe and keys resolved. What matches, and why.
PARSED = {
    r"headrace\.tools\.proof": "minutes; tests/tools/test_proof.py runs a part of it",
    r"^make ": "sets up an environment, and the demo takes two minutes; tests/tools/test_demo.py runs a short one",
    r"^pip ": "changes the environment",
    r"^torchrun ": "several processes; tests/train/test_launch.py starts them",
    r"timm:": "needs an extra; tests/train/test_init.py begins with timm's weights where it is installed",
    r"train\.init=runs/": "needs a run of that method; tests/train/test_init.py",
    r"s3://|hf://": "far away; tests/pipelines/remote/test_stores.py has such stores",
    r"[:=]/data/|list:": "data sets of others; tests/pipelines/sources/test_sources_*.py read each in small",
    r"work_dirs/": "logs of others; tests/tools/runs/test_curves.py",
    r"cue-conflict": "needs a classifier of ImageNet; tests/tools/look/test_shape_bias.py",
    r"^headrace (import|predict) ": "weights of others; tests/tools/exchange/test_weights.py, test_methods.py",
    r"^headrace import-config ": "a configuration of MMSelfSup; tests/tools/exchange/test_import_config.py",
    r"^headrace export mae/": "names a ViT as timm has it, the made one is smaller; see test_export.py",
    r"^headrace svm ": "convolutional maps of 224 px; test_svm.py runs it on twenty made categories",
    r"^python -m headrace\.benchmarks\.": "minutes, and peers that are not installed; tests/benchmarks",
    r"^headrace kernels .*(--execute|roofline)": "Triton's compiler, where these tests interpret; tests/kernels/proof",
    r"^headrace doctor .* --model": "times training steps of full size; tests/tools/doctor/test_doctor.py",
}
# What is added so that a command takes seconds: to a command's words, unless they have the first of these already.
QUICK = {
    "pretrain": (r"--smoke|--show", ["--smoke"]),
    "linear": (r"--lr", ["--lr", "0.1", "--epochs", "1", "--head-batch", "8"]),
    "tsne": (r"--perplexity", ["--perplexity", "5"]),
    "doctor": (r"--seconds", ["--seconds", "1"]),
    "finetune": (
        r"algorithm\.",
        ["algorithm.view.size=32", "algorithm.backbone={patch_size: 8, width: 24, depth: 2, heads: 2}"]
        + ["train.max_steps=2", "train.batch_size=4", "train.precision=fp32", "train.device=cpu", "train.epochs=null"],
    ),
}
# Text of python blocks that stands for what a reader has and we have not.
PYTHON = {'"voc:/data': '"voc:data', ', checkpoint="mixmim-base_3rdparty.pth"': ""}


@pytest.fixture(scope="session")
def world(photo_folder, tmp_path_factory):
    """What pages take for granted: photos, shards of them, two finished runs, VOC in small."""
    root = tmp_path_factory.mktemp("world")
    shutil.copytree(photo_folder, root / "photos")
    make_voc(root / "data" / "VOCdevkit")
    make_deep(root)
    with standing_in(root):
        for out in ("shards", "shards/train", "shards/val"):
            assert run(["headrace", "shard", "photos", out]) == 0
        for recipe, out in (("simclr_resnet18", "runs/simclr"), ("mae_vit-tiny", "runs/mae")):
            options = ["--smoke", "train.max_steps=2", f"train.out={out}", "data.train=photos"]
            assert run(["headrace", "pretrain", recipe, *options]) == 0
    shutil.copytree(root / "runs/mae", root / "mae")
    shutil.copytree(root / "runs/mae", root / "runs/demo")
    shutil.copytree(root / "shards", root / "runs/demo/shards")
    return root


def reason(line):
    return next((why for pattern, why in PARSED.items() if re.search(pattern, line)), None)


def substitute(line):
    if reason(line):
        return None
    words = shlex.split(line, comments=True)
    if words[0] == "headrace" and words[1] in QUICK:
        given, more = QUICK[words[1]]
        words += [] if re.search(given, line) else more
    return words


SHOWN = sorted(name for name, text in pages().items() if commands(text) or "```python" in text)


@pytest.mark.parametrize("name", [name for name in SHOWN if name != "customize.md"])  # which has a test of its own
def test_page(name, world, tmp_path):
    if name == "kernels.md":
        pytest.importorskip("triton")
        if torch.cuda.is_available():
            pytest.skip("the page shows what a machine without a GPU prints")
    text = pages()[name]
    shutil.copytree(world, tmp_path, dirs_exist_ok=True)
    for out in re.findall(r"^headrace shard \S+ (\S+)", text, re.MULTILINE):
        shutil.rmtree(tmp_path / out, ignore_errors=True)
    for ours, made in PYTHON.items():
        text = text.replace(ours, made)
    page = Page(text, tmp_path, substitute)
    page.namespace["images"] = torch.zeros(1, 3, 224, 224)
    with page.inside():
        page.carry_out()
        for line in indented(text):
            page.said.append(page.command(line))
    wrong = [
        f"{said.line}: exit code {said.code}\n{said.output[-2000:]}" for said in page.said if said.code != said.wanted
    ]
    assert not wrong, "\n".join(wrong)


def test_blocks_of_commands_say_so():
    """Only ``sh`` blocks and indented lines are looked at: a command must not hide in another block."""
    for name, text in pages().items():
        for language, block in blocks(text):
            hidden = [line for line in block.splitlines() if line.split(" ")[0] in COMMAND_WORDS]
            assert language in ("sh", "bash", "text", "python") or not hidden, (
                f"{name}: {hidden[0]}: begin it with ```sh"
            )


def test_what_sentences_name_exists():
    """In `code` spans: headrace's commands, modules that python runs, files of the tree."""
    folders = "pipelines|kernels|models|train|tools|benchmarks|tests|configs|docs"
    missing = []
    for name, text in pages().items():
        for span in re.findall(r"`([^`\n]+)`", text):
            words = span.split()
            if words[0] == "headrace" and len(words) > 1 and words[1] not in COMMANDS and words[1][0] not in "<-":
                missing.append(f"{name}: {span}")
            if words[:2] == ["python", "-m"] and words[2].startswith("headrace.") and find_spec(words[2]) is None:
                missing.append(f"{name}: {span}")
            files = re.findall(rf"(?<![\w/.-])(?:{folders})/[\w/-]+\.(?:py|yaml|md|sh)\b", span)
            if name != "migrating.md":  # which names files of others
                missing += [f"{name}: {file}" for file in files if not (ROOT / file).exists()]
    assert missing == []


def test_no_reason_is_left_over():
    lines = [line for text in pages().values() for line in commands(text) + indented(text)]
    assert [pattern for pattern in PARSED if not any(re.search(pattern, line) for line in lines)] == []


def test_a_page_that_lies_is_found(tmp_path):
    assert parse(["headrace", "knn", "run", "--trian", "x", "--val", "x"]) != 0
    assert parse(["make", "test"]) == 0
    with pytest.raises(AssertionError, match="no such target"):
        parse(["make", "coffee"])
    with pytest.raises(UserError, match="did you mean batch_size"):
        parse(["torchrun", "--nproc-per-node", "8", "train/pretrain.py", "mae_vit-tiny", "train.bath_size=8"])
    with pytest.raises(UserError, match="no kind of source 'imagnet'"):
        parse(["headrace", "shard", "imagnet:/data/x", "out"])
    page = Page(
        "```sh\nheadrace recipes mae_vit-tiny\n```\n```text\nmae_vit-tiny  a ViT-Huge\n```\n", tmp_path, shlex.split
    )
    with page.inside(), pytest.raises(AssertionError, match="ViT-Huge' was not printed"):
        page.carry_out()


def test_one_batch_from_tar_to_step():
    """docs/architecture.md follows it through at most eight functions, each where the page says."""
    rows = re.findall(r"^\| \d \| `([\w.]+)` in `([\w/]+)\.py`", pages()["architecture.md"], re.MULTILINE)
    assert 5 <= len(rows) <= 8
    for name, file in rows:
        thing = importlib.import_module(f"headrace.{file.replace('/', '.')}")
        for part in name.split("."):
            assert part in vars(thing), f"{file}.py has no {name}"  # its own, not one that it inherits
            thing = vars(thing)[part]
        assert callable(thing)
