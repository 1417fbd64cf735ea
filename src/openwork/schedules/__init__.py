"""Step -> Phase. Pure frozen dataclasses."""

from openwork.schedules.alternating import alternating as alternating
from openwork.schedules.phases import Phases as Phases
from openwork.schedules.phases import Stretch as Stretch
from openwork.schedules.shapes import Announced as Announced
from openwork.schedules.shapes import Cubic as Cubic
from openwork.schedules.shapes import Exponential as Exponential
from openwork.schedules.shapes import Linear as Linear
from openwork.schedules.shapes import OneShot as OneShot
from openwork.schedules.shapes import Periodic as Periodic
from openwork.schedules.shapes import Rounds as Rounds
