"""Results as folders: written whole or not at all, checked when read."""

from openwork.ship.folder import load as load
from openwork.ship.folder import read_result as read_result
from openwork.ship.folder import save as save
