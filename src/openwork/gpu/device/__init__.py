"""Triton kernels and their launchers. Importing this needs Triton: only `openwork.gpu.launch.kernels` does it."""

from openwork.gpu.device.decode import decode as decode
from openwork.gpu.device.finish import combine as combine
from openwork.gpu.device.outer import outer as outer
from openwork.gpu.device.product import product as product
