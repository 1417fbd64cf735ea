"""openwork makes neural networks sparse, keeps their accuracy, and says exactly what it did.

import openwork as ow
from openwork.methods import spode

result = ow.prune(model, spode(density=0.05), data=loader, loss=F.cross_entropy)
print(result.report())
ow.save(model, result, "folder")
model, result = ow.load("folder")
"""

from openwork import methods
from openwork.core.compose import Chain, During, On
from openwork.core.masks import Masks
from openwork.core.recipe import Recipe
from openwork.core.select import keep_top
from openwork.core.targets import Select
from openwork.data.registry import load_data
from openwork.engine import Attached, Cycle, Result, Round, attach, cycle, hold, prune, rearrange, recalibrate
from openwork.errors import (
    DataError,
    DensityMissed,
    DivergedError,
    FileError,
    FormatError,
    MissingStatistic,
    OpenworkError,
    RecipeError,
    StructureError,
    VerificationFailed,
)
from openwork.graph import build_graph
from openwork.llm import BlockwiseResult, prune_blockwise
from openwork.onnx import prune_onnx
from openwork.runtime import pack
from openwork.ship import compact, export, load, plan_compaction, save, token_map, verify
from openwork.structure import (
    NM,
    Block,
    Column,
    Element,
    Filter,
    GroupOf,
    InputChannel,
    Kernel,
    Row,
    channels,
    experts,
    heads,
    hidden,
    layers,
    vocabulary,
)
from openwork.version import __version__ as __version__
from openwork.zoo.registry import build_model

__all__ = [
    "NM",
    "Attached",
    "Block",
    "BlockwiseResult",
    "Chain",
    "Column",
    "Cycle",
    "DataError",
    "DensityMissed",
    "DivergedError",
    "During",
    "Element",
    "FileError",
    "Filter",
    "FormatError",
    "GroupOf",
    "InputChannel",
    "Kernel",
    "Masks",
    "MissingStatistic",
    "On",
    "OpenworkError",
    "Recipe",
    "RecipeError",
    "Result",
    "Round",
    "Row",
    "Select",
    "StructureError",
    "VerificationFailed",
    "attach",
    "build_graph",
    "build_model",
    "channels",
    "compact",
    "cycle",
    "experts",
    "export",
    "heads",
    "hidden",
    "hold",
    "keep_top",
    "layers",
    "load",
    "load_data",
    "methods",
    "pack",
    "plan_compaction",
    "prune",
    "prune_blockwise",
    "prune_onnx",
    "rearrange",
    "recalibrate",
    "save",
    "token_map",
    "verify",
    "vocabulary",
]
