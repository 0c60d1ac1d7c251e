"""What strangers import: a list of names, documented, imported only when used; pages import nothing else."""

import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import headrace

ROOT = Path(headrace.__file__).parent
PUBLIC = {
    "headrace": "UserError embed get_model knn list_models loader pretrain",
    "headrace.kernels": "Implementation configure function operator operator_names reference report use without_triton",
    "headrace.models": "Algorithm AnyBackboneConfig BackboneConfig DINOHead HiViT MAEDecoder MixMIMDecoder "
    "MixMIMTransformer Progress Queue ResNet SampleMemory StepOutput Swin Teacher ViT algorithm_names build_backbone "
    "cosine_momentum find_algorithm gather_with_gradient inputs_of load_weights projection_mlp synchronize_batch_norm "
    "tiny_backbone tiny_view",
    "headrace.pipelines": "ArraySource Batch BlockMask ByteSource CellMask CropMask DatasetSource EpochLoader "
    "InputSpec Loader LoaderError LoaderStats MASKS Mask MaskSpec MixSpec MixedOrder Operation Order Part Place "
    "Quarantine RandAugment RandomErasing RandomMask SetSpec SharedMask TargetBlocksMask VIEWS VariedMask ViewParams "
    "ViewSpec WeightedMask choose_loader draw_mask draw_views folder_beside loader make_loader mask "
    "open_plan open_source order_of reference_views view write_columns",
    "headrace.train": "Encoder Features Launch Recipe Stepper build_optimizer embed evaluation_view fit_heads "
    "knn_accuracy knn_table launch load_algorithm load_encoder load_recipe nearest pick_device read_metrics smoke",
}
ALL = [(face, name) for face, names in PUBLIC.items() for name in names.split()]


@pytest.mark.parametrize("face", PUBLIC)
def test_names_are_those_promised(face):
    module = importlib.import_module(face)
    assert module.__all__ == sorted(PUBLIC[face].split()) and set(module.__all__) <= set(dir(module))


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'headrace.pipelines' has no attribute 'Order66'"):
        _ = importlib.import_module("headrace.pipelines").Order66


@pytest.mark.parametrize("face, name", ALL)
def test_docstrings_say_shapes_and_errors(face, name):
    thing = getattr(importlib.import_module(face), name)
    if not inspect.isfunction(thing) and not inspect.isclass(thing):
        return  # tables and unions have comments
    text = thing.__doc__ or ""
    assert text and not text.startswith(f"{name}("), "no docstring, or the one that dataclasses make"
    if inspect.isfunction(thing):
        if re.search(r"Tensor|ndarray", str(inspect.signature(thing))):
            assert re.search(r"\([A-Z0-9][\w, .*/+-]*\)", text), "names no shape"
        if "raise " in inspect.getsource(thing):
            assert "Raises" in text or "Error" in text, "does not say what it raises"


def test_import_is_light():
    """No package of others is loaded; the time is that of reading two small files."""
    code = (
        "import sys; before = set(sys.modules)\n"
        "import headrace, headrace.pipelines, headrace.models, headrace.kernels, headrace.train; dir(headrace)\n"
        "print(sorted({name.split('.')[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "['headrace']"


def _imports(text):
    """(module, name) of every import of headrace in the python blocks of a page; name "" for a module."""
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        for module, several, one in re.findall(
            r"^\s*from (headrace[\w.]*) import (?:\(([^)]*)\)|(.+))", block, re.MULTILINE
        ):
            yield from ((module, name.split(" as ")[0].strip()) for name in (several or one).split(",") if name.strip())
        yield from ((module, "") for module in re.findall(r"^\s*import (headrace[\w.]*)", block, re.MULTILINE))


def _is_public(module, name):
    inside = f"{module}.{name}"
    return module in PUBLIC and (not name or name in PUBLIC[module].split() or inside in PUBLIC)


def test_pages_import_public_names_only():
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    found = [(page.name, *entry) for page in pages for entry in _imports(page.read_text("utf-8"))]
    assert len(found) > 10
    assert [entry for entry in found if not _is_public(*entry[1:])] == []
    assert not _is_public("headrace.pipelines.loaders.base", "BaseLoader") and not _is_public("headrace.models", "vit")
