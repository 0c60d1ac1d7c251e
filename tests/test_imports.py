"""Who may import whom, read from the sources; and that light imports stay light."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import headrace

ROOT = Path(headrace.__file__).parent
ALLOWED = {  # room -> what it may import of headrace, besides itself and what lies beside the packages
    "kernels": "",
    "schema": "",
    "pipelines": "schema pipelines kernels",
    "pipelines/images": "",
    "pipelines/remote": "",
    "pipelines/sources": "pipelines.images pipelines.remote pipelines.spec",
    "pipelines/measure": "pipelines.images pipelines.sources pipelines.spec pipelines.identity pipelines.workers"
    " pipelines.numba_cache",
    "pipelines/views": "pipelines.images pipelines.spec pipelines.rng pipelines.numba_cache kernels",
    "pipelines/sharding": "pipelines.images pipelines.remote pipelines.sources pipelines.measure"
    " pipelines.plan.columns pipelines.workers pipelines.spec",
    "pipelines/plan": "schema pipelines.sources pipelines.spec pipelines.rng pipelines.order",
    "pipelines/pixels": "pipelines.images pipelines.sources pipelines.plan pipelines.views pipelines.spec"
    " pipelines.sharding.progress",
    "pipelines/loaders": "pipelines.images pipelines.sources pipelines.plan pipelines.pixels pipelines.views"
    " pipelines.spec pipelines.rng pipelines.order pipelines.identity kernels",
    "models": "schema kernels pipelines.spec pipelines.rng pipelines.views.recipes pipelines.views.masks"
    " pipelines.views.mixing",
    "train": "schema train pipelines models kernels",
    "train/recipe": "schema pipelines models",
    "train/foreign": "train.recipe pipelines models",
    "train/engine": "train.recipe schema.bounds pipelines models kernels",
    "train/evaluation": "train.recipe train.engine train.pretrain pipelines models kernels",
    "train/dense": "train.recipe train.engine train.evaluation train.pretrain pipelines models kernels",
    "train/patches": "train.recipe train.engine train.evaluation train.dense pipelines models kernels",
    "tools": "schema tools train pipelines models kernels",
    "tools/exchange": "train pipelines models kernels",
    "tools/look": "tools.columns train pipelines models kernels",
    "tools/runs": "schema tools.look tools.columns train pipelines models kernels",
    "tools/know": "tools.look tools.columns train pipelines models kernels",
    "tools/doctor": "tools.columns train pipelines models kernels",
    "benchmarks": "tools train pipelines models kernels",
}
MOST = 15  # files of code side by side, unless they are a list of like things
LISTS = {  # folders whose files are looked up by name, one of many
    "pipelines/sources": "kinds of sources",
    "models/algorithms": "methods",
    "benchmarks": "benchmarks",
}
UNNAMED = {"models/algorithms", "benchmarks/peers", "tools/exchange/targets"}  # their files are named as what they hold
HEAVY = {  # third-party package -> the files that are about it
    "nvidia": {"pipelines/loaders/dali.py", "benchmarks/augment_gpu.py", "benchmarks/peers/dali.py"},
    "triton": {
        *("triton_impl.py", "kernels/aot.py", "kernels/bench.py"),
        *("kernels/biased_attention/tiled.py", "kernels/biased_attention/one_pass.py"),
        *("kernels/biased_attention/two_pass.py", "kernels/biased_attention/launches.py"),
        *("kernels/proof/launches.py", "kernels/proof/sass.py", "kernels/augment/interleaved.py"),
        *("kernels/crop_resize/taps.py", "kernels/crop_resize/rgb_kernel.py", "kernels/crop_resize/plane_kernel.py"),
        *("kernels/window_attention/window_kernels.py", "benchmarks/host_worker.py"),
    },
    "webdataset": {"pipelines/loaders/stream.py", "benchmarks/peers/tars.py"},
    "simplejpeg": {"pipelines/views/cut.py", "pipelines/images/reduced.py"},
    "pycocotools": {"train/dense/coco.py"},
    "numba": {
        "pipelines/numba_cache.py",
        "pipelines/views/cpu_augment.py",
        "pipelines/views/yuv.py",
        "pipelines/measure/statistics.py",
        "pipelines/measure/hamming.py",
        "pipelines/measure/letters.py",
        "pipelines/measure/likeness.py",
    },
    "obstore": {"pipelines/remote/objects.py"},
    "tifffile": {"pipelines/sources/rasters.py"},
    "pyvips": {"pipelines/images/oversize.py"},
    "lmdb": {"pipelines/sources/lmdb_values.py"},
    "ffcv": {"pipelines/sharding/beton.py", "pipelines/loaders/ffcv_file.py"},
}


def sources():
    for package in {room.split("/")[0] for room in ALLOWED}:
        yield from (ROOT / package).rglob("*.py")


def room_of(path):
    """The innermost room of `ALLOWED` that a file lies in."""
    return next(str(p) for p in path.relative_to(ROOT).parents if str(p) in ALLOWED)


def imported_modules(path):
    """Absolute names of every module a file imports, at any depth."""
    package = ["headrace", *path.relative_to(ROOT).with_suffix("").parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def forbidden(path):
    room = room_of(path)
    allowed = [room.replace("/", "."), *ALLOWED[room].split()]
    for name in imported_modules(path):
        parts = name.split(".")
        if parts[0] != "headrace" or len(parts) < 2 or not (ROOT / parts[1]).is_dir():
            continue
        target = ".".join(parts[1:])
        if not any(target == a or target.startswith(a + ".") or a.startswith(target + ".") for a in allowed):
            yield f"{path.relative_to(ROOT)} imports {name}"


def test_no_forbidden_edges():
    assert [line for path in sources() for line in forbidden(path)] == []


@pytest.mark.parametrize(
    "place, statement",
    [
        ("kernels/not_a_file.py", "from ..pipelines.spec import Batch"),
        ("pipelines/views/not_a_file.py", "from ..loaders.base import Plan"),
        ("schema/not_a_file.py", "from ..pipelines.spec import ViewSpec"),
        ("pipelines/sources/not_a_file.py", "from ..views import draw"),
        ("train/engine/not_a_file.py", "from ..evaluation.knn import classify"),
        ("train/recipe/not_a_file.py", "import headrace.train.engine.step"),
        ("tools/look/not_a_file.py", "from ..runs.report import main"),
    ],
)
def test_a_forbidden_edge_is_found(place, statement):
    class Stand(type(ROOT)):
        def read_text(self):
            return statement + "\n"

    assert list(forbidden(Stand(ROOT / place))) != []


def test_every_folder_is_a_room_one_can_read():
    folders = {path.parent for path in sources()}
    counts = {str(f.relative_to(ROOT)): len([*f.glob("*.py")]) for f in folders}
    assert {f: n for f, n in counts.items() if n > MOST and f not in LISTS} == {}
    assert [f for f in LISTS if counts[f] <= MOST] == []


def test_every_folder_has_a_map():
    """The docstring of a folder's ``__init__`` names every file and folder in it; operators' folders are all alike."""
    unnamed = []
    for folder in {path.parent for path in sources()}:
        text = ast.get_docstring(ast.parse((folder / "__init__.py").read_text())) or ""
        name = str(folder.relative_to(ROOT))
        if name in UNNAMED or folder.parent == ROOT / "kernels":
            continue
        files = {p.name for p in folder.glob("*.py")} - {"__init__.py"}
        rooms = {f"{p.parent.name}/" for p in folder.glob("*/__init__.py")} if name != "kernels" else set()
        unnamed += [f"{name}: {n}" for n in sorted(files | rooms) if n not in text]
    assert unnamed == []


def test_no_map_names_a_file_that_is_not_there():
    gone = []
    for folder in {path.parent for path in sources()}:
        text = ast.get_docstring(ast.parse((folder / "__init__.py").read_text())) or ""
        for name in re.findall(r"(?<![\w/])\w+\.py\b", text):
            places = [*folder.rglob(name), *folder.parent.glob(name)]
            gone += [] if places else [f"{folder.relative_to(ROOT)}: {name}"]
    assert gone == []


def test_heavy_packages_stay_in_their_files():
    for path in sources():
        if path.is_relative_to(ROOT / "benchmarks" / "peers"):  # each of these is about other packages
            continue
        name = str(path.relative_to(ROOT))
        for module in imported_modules(path):
            homes = HEAVY.get(module.split(".")[0])
            assert homes is None or any(name.endswith(home) for home in homes), f"{name} imports {module}"


def test_no_file_shadows_a_module_on_the_path_of_torchrun():
    dependencies = {
        "torch",
        "torchvision",
        "triton",
        "numpy",
        "yaml",
        "webdataset",
        "ffcv",
        "PIL",
        "rich",
        "matplotlib",
    }
    names = {path.stem for path in (ROOT / "train").iterdir()} - {"__init__"}
    assert not names & (set(sys.stdlib_module_names) | dependencies)


def test_models_import_with_torch_alone():
    blocked = ("nvidia.dali", "triton", "webdataset", "ffcv", "torchvision", "matplotlib", "rich")
    code = (
        "import sys\n"
        f"for name in {blocked!r}: sys.modules[name] = None\n"
        "import headrace.models, headrace.models.algorithms.mae, headrace.kernels, headrace.pipelines.spec\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


LIGHT = {  # what answers at once -> what it must not import
    "--help": "torch numpy yaml",
    "recipes": "torch numpy",
    "pretrain --help": "torch numpy yaml",
    "pretrain mae_vit-tiny --smoke train.max_steps=1": "torch._dynamo torch._inductor sympy torchvision matplotlib",
    "pretrain mae_vit-tiny --show": "torch._dynamo torch._inductor sympy torchvision numba nvidia.dali matplotlib",
}


@pytest.mark.parametrize("command", LIGHT)
def test_what_answers_at_once_imports_little(command):
    code = (
        "import sys, contextlib, io\n"
        "from headrace.cli import dispatch\n"
        "with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):\n"
        f"    dispatch({command.split()!r})\n"
        f"print(*sorted(set({LIGHT[command].split()!r}) & sys.modules.keys()))\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (ran.stdout.strip(), ran.returncode) == ("", 0), ran.stderr


def test_the_compiler_is_told_what_its_own_decorator_tells_it():
    """`kernels.registry` marks functions itself, because the decorator imports the compiler."""
    code = (
        "import torch\nfrom headrace.kernels.registry import _constant\n"
        "mine, theirs = _constant(lambda: 0), torch.compiler.assume_constant_result(lambda: 0)\n"
        "assert vars(mine) == vars(theirs) != {}\n"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
