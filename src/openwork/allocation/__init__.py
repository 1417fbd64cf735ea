"""Scores and a share become counts. Allocations never make masks."""

from openwork.allocation.borrowed import Borrowed as Borrowed
from openwork.allocation.ends import FixedEnds as FixedEnds
from openwork.allocation.ends import fixed_densities as fixed_densities
from openwork.allocation.erdos import ErdosRenyi as ErdosRenyi
from openwork.allocation.erdos import erk_densities as erk_densities
from openwork.allocation.overall import Global as Global
from openwork.allocation.uniform import Uniform as Uniform
