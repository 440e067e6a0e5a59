"""Images and opinion scores in: data sets and distortions.

The Lightning data module is imported by name, ``certiqa.data.datamodule``: whoever distorts an image should not wait
for Lightning.
"""

from certiqa.data.distortions import DISTORTIONS, distort
from certiqa.data.images import ImageDataset, ImageRecord, to_tensor
from certiqa.data.reading import read_image
from certiqa.data.registry import DATASETS, load_dataset
from certiqa.storage.cache import cache_root

__all__ = [
    "DATASETS",
    "DISTORTIONS",
    "ImageDataset",
    "ImageRecord",
    "cache_root",
    "distort",
    "load_dataset",
    "read_image",
    "to_tensor",
]
