"""Results as folders: written whole or not at all, checked when read. Small models, and the proof that they are."""

from openwork.ship.compact import compact as compact
from openwork.ship.compact import plan_compaction as plan_compaction
from openwork.ship.folder import load as load
from openwork.ship.folder import read_result as read_result
from openwork.ship.folder import save as save
from openwork.ship.verify import verify as verify
