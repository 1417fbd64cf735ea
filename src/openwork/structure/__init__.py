"""Which entries of which tensors live and die together."""

from openwork.structure.cover import Covered as Covered
from openwork.structure.cover import partition as partition
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
