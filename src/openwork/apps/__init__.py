"""Uses of the library: each stands on the rooms below and nothing stands on it but the laboratory and the commands."""

from openwork.apps.feature_selection import Selection as Selection
from openwork.apps.feature_selection import select_features as select_features
from openwork.apps.selector import SequentialSelector as SequentialSelector
