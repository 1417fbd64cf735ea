"""Language models of any size: pruned block by block, from a checkpoint folder or in memory."""

from openwork.llm.blockwise import prune_blockwise as prune_blockwise
from openwork.llm.reconstruction import Reconstruction as Reconstruction
from openwork.llm.result import BlockwiseResult as BlockwiseResult
from openwork.llm.sweep import Sweep as Sweep
from openwork.llm.sweep import sparsity_sweep as sparsity_sweep
