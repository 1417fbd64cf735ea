"""The drivers: the only code that writes into a model."""

from openwork.engine.attach import Attached as Attached
from openwork.engine.attach import attach as attach
from openwork.engine.cycle import Cycle as Cycle
from openwork.engine.cycle import Round as Round
from openwork.engine.cycle import cycle as cycle
from openwork.engine.hold import hold as hold
from openwork.engine.prune import prune as prune
from openwork.engine.rearrange import Moved as Moved
from openwork.engine.rearrange import rearrange as rearrange
from openwork.engine.recalibrate import recalibrate as recalibrate
from openwork.engine.result import Result as Result
