"""Block-sparse layers on GPUs: Triton kernels, their index, and the same in plain torch everywhere else.

Triton is loaded when a kernel first runs on a GPU; without one, the reference in plain torch computes the same.
"""

from openwork.gpu.functional import block_linear as block_linear
from openwork.gpu.index import BlockIndex as BlockIndex
from openwork.gpu.linear import BlockSparseLinear as BlockSparseLinear
