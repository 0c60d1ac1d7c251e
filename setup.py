"""The repository root is the package `headrace`: its folders are the package's modules."""

import os
import re
from pathlib import Path

from setuptools import find_packages, setup

# DALI's package name carries the CUDA major version of the driver: 130 is what current PyTorch wheels bring;
# HEADRACE_DALI_CUDA=120 picks the build for CUDA 12 drivers. Both decode on CPUs alone.
DALI_CUDA = os.environ.get("HEADRACE_DALI_CUDA", "130")
FOLDERS = ("schema", "pipelines", "kernels", "models", "train", "tools", "benchmarks")

setup(
    version=re.search(r'__version__ = "(.+)"', Path(__file__).with_name("__init__.py").read_text(encoding="utf-8"))[1],
    packages=[
        "headrace",
        *(f"headrace.{name}" for name in find_packages(include=[p for f in FOLDERS for p in (f, f"{f}.*")])),
    ],
    package_dir={"headrace": "."},
    package_data={"headrace": ["configs/*.yaml", "configs/*/*.yaml", "kernels/*/*.json", "tools/*.json"]},
    install_requires=[
        "torch>=2.8",
        "torchvision",
        "triton>=3.4; platform_system == 'Linux'",
        f"nvidia-dali-cuda{DALI_CUDA}>=1.50; platform_system == 'Linux'",
        "webdataset",
        "simplejpeg",
        "numba",
        "numpy",
        "pillow",
        "pyyaml",
        "rich",
        "safetensors",
        "matplotlib",
    ],
    extras_require={
        "ffcv": ["ffcv"],
        "lightning": ["lightning"],  # loops that docs/loader.md shows
        "accelerate": ["accelerate", "transformers"],
        "lightly": ["lightly"],
        "peers": ["albumentations", "kornia", "lightly", "timm"],  # what benchmarks/loaders.py compares with
        "timm": ["timm"],
        "eval": ["scikit-learn"],
        "umap": ["umap-learn"],
        "cloud": ["obstore"],  # shards on S3, Google Cloud Storage and Azure
        "cloud-tests": ["obstore", "moto[server,s3]"],  # an S3 server for the tests of it
        "huge": ["pyvips[binary]"],  # PNG and TIFF of more pixels than memory holds, with --max-side
        "formats": ["pillow-heif", "imagecodecs"],  # photos of phones: HEIC; JPEG XL
        "tables": ["pyarrow"],  # columns of samples in parquet files, and some of LitData's chunks
        "rasters": ["tifffile", "imagecodecs"],  # windows of large TIFFs, images of many channels, 16-bit colour
        "dicom": ["pydicom"],
        "lmdb": ["lmdb"],  # images that are the values of a database
        "writers": ["litdata", "mosaicml-streaming"],  # whose files tests compare with what is read of them
        "detect": ["pycocotools"],
        # what tests compare exported weights and hashes of images with, where it is installed
        "parity": [
            "ImageHash",
            "timm",
            "transformers>=5",
            "onnx",
            "onnxscript",
            "onnxruntime",
            "mmpretrain==1.2.0",
            "mmcv-lite==2.1.0",
            "importlib_metadata<8",
        ],
        "tensorboard": ["tensorboard"],
        "wandb": ["wandb>=0.19.10"],
        "dev": [
            "pytest",
            "pytest-timeout",
            "pytest-xdist",
            "hypothesis",
            "scikit-learn",
            "scipy",
            "pycocotools",
            "ruff",
        ],
    },
)
