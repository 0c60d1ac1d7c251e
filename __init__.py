"""headrace: self-supervised vision pre-training whose centre is the data path.

``pipelines`` turns image bytes into batches on the device, ``kernels`` holds the operators and their implementations,
``models`` the backbones and algorithms, ``train`` the loop and the evaluations, ``tools`` what people look through.
"""

__version__ = "0.1.0"


def __getattr__(name: str):
    """`list_models` and `get_model`, imported when they are first asked for."""
    if name in ("list_models", "get_model"):
        from .tools import models_api

        return getattr(models_api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
