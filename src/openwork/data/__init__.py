"""Data sets read from files that are already there, in memory or streamed. Nothing here downloads unless told to."""

from openwork.data.batches import Batches
from openwork.data.dataset import DataSet, StreamedSet
from openwork.data.registry import load_data
from openwork.data.split import split_off

__all__ = ["Batches", "DataSet", "StreamedSet", "load_data", "split_off"]
