"""headrace: self-supervised vision pre-training whose centre is the data path.

``pipelines`` turns image bytes into batches on the device, ``kernels`` holds the operators and their implementations,
``models`` the backbones and algorithms, ``train`` the loop and the evaluations, ``tools`` what people look through.
"""

__version__ = "0.1.0"
