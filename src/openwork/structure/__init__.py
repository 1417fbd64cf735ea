"""Which entries of which tensors live and die together."""

from openwork.structure.coupled import Coupled as Coupled
from openwork.structure.coupling import Coupling as Coupling
from openwork.structure.coupling import channels as channels
from openwork.structure.coupling import experts as experts
from openwork.structure.coupling import heads as heads
from openwork.structure.coupling import hidden as hidden
from openwork.structure.coupling import vocabulary as vocabulary
from openwork.structure.cover import Covered as Covered
from openwork.structure.cover import partition as partition
from openwork.structure.depth import Depth as Depth
from openwork.structure.depth import layers as layers
from openwork.structure.shapes import NM as NM
from openwork.structure.shapes import Block as Block
from openwork.structure.shapes import Column as Column
from openwork.structure.shapes import Element as Element
from openwork.structure.shapes import Filter as Filter
from openwork.structure.shapes import GroupOf as GroupOf
from openwork.structure.shapes import InputChannel as InputChannel
from openwork.structure.shapes import Kernel as Kernel
from openwork.structure.shapes import Row as Row
from openwork.structure.tiles import Tiles as Tiles
