"""Data sets: found, decoded once, loaded as tensors; subsets and the order of samples."""

from trainers.data.catalogue import OFFICIAL
from trainers.data.encoded import EncodedImages
from trainers.data.find import find_source
from trainers.data.images import ImageData, content_fingerprint
from trainers.data.info import PROVISIONAL, DatasetInfo
from trainers.data.order import SampleOrder
from trainers.data.prepare import Form, made_from, prepare
from trainers.data.prepared import load, load_info, read_meta
from trainers.data.source import Source
from trainers.data.subset import ipc_indices

__all__ = [
    "OFFICIAL",
    "PROVISIONAL",
    "DatasetInfo",
    "EncodedImages",
    "Form",
    "ImageData",
    "SampleOrder",
    "Source",
    "content_fingerprint",
    "find_source",
    "ipc_indices",
    "load",
    "load_info",
    "made_from",
    "prepare",
    "read_meta",
]
