"""Results as folders and packed models as files: written whole or not at all, checked when read."""

from openwork.ship.export import export as export
from openwork.ship.folder import load as load
from openwork.ship.folder import read_result as read_result
from openwork.ship.folder import save as save
from openwork.ship.packed import PackedFile as PackedFile
from openwork.ship.packed import read_packed as read_packed
from openwork.ship.packed import write_packed as write_packed
from openwork.ship.stranded import read_stranded as read_stranded
