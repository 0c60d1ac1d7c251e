"""Who may import whom, read from the sources; and that light imports stay light."""

import ast
import subprocess
import sys
from pathlib import Path

import headrace

ROOT = Path(headrace.__file__).parent
ALLOWED = {  # package -> what it may import of headrace, besides itself and headrace.errors
    "kernels": set(),
    "pipelines": {"kernels"},
    "models": {"kernels", "pipelines.spec", "pipelines.recipes", "pipelines.masks", "pipelines.mixing"},
    "train": {"pipelines", "models", "kernels"},
    "tools": {"train", "pipelines", "models", "kernels"},
    "benchmarks": {"tools", "train", "pipelines", "models", "kernels"},
}
HEAVY = {  # third-party package -> the files that are about it
    "nvidia": {"pipelines/dali_loader.py", "benchmarks/augment_gpu.py", "benchmarks/peers/dali.py"},
    "triton": {"triton_impl.py", "kernels/aot.py", "kernels/biased_attention/tiled.py", "kernels/bench.py"},
    "webdataset": {"pipelines/stream_loader.py", "benchmarks/peers/tars.py"},
    "simplejpeg": {"pipelines/cut.py"},
    "pycocotools": {"train/dense/coco.py"},
    "numba": {"pipelines/cpu_augment.py"},
    "ffcv": {"pipelines/sharding/beton.py", "pipelines/ffcv_loader.py"},
}


def sources():
    for package in ALLOWED:
        yield from (ROOT / package).rglob("*.py")


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


def forbidden(path, package):
    for name in imported_modules(path):
        parts = name.split(".")
        if parts[0] != "headrace" or len(parts) < 2 or not (ROOT / parts[1]).is_dir():
            continue
        target = ".".join(parts[1:])
        allowed = {package, *ALLOWED[package]}
        if not any(target == a or target.startswith(a + ".") or a.startswith(target + ".") for a in allowed):
            yield f"{path.relative_to(ROOT)} imports {name}"


def test_no_forbidden_edges():
    found = [line for path in sources() for line in forbidden(path, path.relative_to(ROOT).parts[0])]
    assert found == []


def test_a_forbidden_edge_is_found(tmp_path):
    path = ROOT / "kernels" / "not_a_file.py"
    text = tmp_path / "x.py"
    text.write_text("from ..pipelines.spec import Batch\n")

    class Stand(type(path)):
        def read_text(self):
            return text.read_text()

    assert list(forbidden(Stand(path), "kernels")) != []


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
    names = {path.stem for path in (ROOT / "train").glob("*.py")} - {"__init__"}
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
