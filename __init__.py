"""headrace: self-supervised vision pre-training whose centre is the data path.

``pipelines`` turns image bytes into batches on the device, ``kernels`` holds the operators and their implementations,
``models`` the backbones and algorithms, ``train`` the loop and the evaluations, ``tools`` what people look through.

Here is what one needs from Python; these names are imported when they are first used:

    loader        batches of multi-view, masked images, for a loop of one's own
    pretrain      a recipe -> a run          embed   features of a data set       knn   how good they are
    list_models, get_model                   encoders by name
    UserError     what all of them raise when the fault is in what they were given
"""

from .lazy import face

__version__ = "0.2.0"

__getattr__, __dir__, __all__ = face(
    __name__,
    {
        "errors": "UserError",
        "pipelines.loaders.epochs": "loader",
        "train.notebook": "pretrain embed knn",
        "tools.models_api": "list_models get_model",
    },
)
