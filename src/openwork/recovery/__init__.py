"""Repair of pruned models with masks fixed."""

from openwork.recovery.lora import merge_low_rank as merge_low_rank
from openwork.recovery.lora import merge_peft as merge_peft
from openwork.recovery.perp import Perp as Perp
from openwork.recovery.soup import Soup as Soup
from openwork.recovery.soup import SoupReport as SoupReport
from openwork.recovery.soup import adaptive_rate as adaptive_rate
from openwork.recovery.soup import average_states as average_states
from openwork.recovery.soup import linear_rate as linear_rate
