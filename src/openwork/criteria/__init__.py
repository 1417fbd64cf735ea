"""A score per unit, larger = keep."""

from openwork.criteria.activation import BetaRank as BetaRank
from openwork.criteria.activation import WeightTimesInput as WeightTimesInput
from openwork.criteria.coupled import GeometricMedian as GeometricMedian
from openwork.criteria.coupled import GroupHessian as GroupHessian
from openwork.criteria.coupled import NormScale as NormScale
from openwork.criteria.gradient import Flow as Flow
from openwork.criteria.gradient import Grasp as Grasp
from openwork.criteria.gradient import Saliency as Saliency
from openwork.criteria.gradient import StepGradient as StepGradient
from openwork.criteria.gradient import Taylor as Taylor
from openwork.criteria.grouped import Grouped as Grouped
from openwork.criteria.lamp import Lamp as Lamp
from openwork.criteria.learned import Learned as Learned
from openwork.criteria.weights import Magnitude as Magnitude
from openwork.criteria.weights import Random as Random
