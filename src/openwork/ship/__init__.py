"""Results as folders, packed models as files, small models and the proof that they are the same."""

from openwork.ship.compact import compact as compact
from openwork.ship.compact import plan_compaction as plan_compaction
from openwork.ship.compact import token_map as token_map
from openwork.ship.export import export as export
from openwork.ship.folder import load as load
from openwork.ship.folder import read_result as read_result
from openwork.ship.folder import save as save
from openwork.ship.packed import PackedFile as PackedFile
from openwork.ship.packed import read_packed as read_packed
from openwork.ship.packed import write_packed as write_packed
from openwork.ship.stranded import read_stranded as read_stranded
from openwork.ship.verify import verify as verify
