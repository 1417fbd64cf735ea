"""ONNX files of any framework: read, find the groups, prune, write a smaller file, run it."""

from openwork.onnx.file import read_onnx as read_onnx
from openwork.onnx.graph import onnx_graph as onnx_graph
from openwork.onnx.prune import OnnxReport as OnnxReport
from openwork.onnx.prune import prune_onnx as prune_onnx
