"""Labelled photos in the layouts that experiments use, read into one form.

`folders` is any folder of folders; `grocery`, `cub`, `aircraft` and `cars` are the published
collections as they are unpacked.
"""

from evaluation.data.dataset import Dataset, Options, Split
from evaluation.data.layouts import LAYOUTS, load

__all__ = ["LAYOUTS", "Dataset", "Options", "Split", "load"]
