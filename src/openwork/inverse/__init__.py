"""Selection problems on plain float64 tensors: the theory that the attention methods stand on. Knows no modules."""

from openwork.inverse.group_lasso import group_lasso as group_lasso
from openwork.inverse.group_lasso import sequential_group_lasso as sequential_group_lasso
from openwork.inverse.group_lasso import tau as tau
from openwork.inverse.groups import Groups as Groups
from openwork.inverse.groups import as_groups as as_groups
from openwork.inverse.objective import LeastSquares as LeastSquares
from openwork.inverse.objective import Logistic as Logistic
from openwork.inverse.objective import Objective as Objective
from openwork.inverse.objective import Quadratic as Quadratic
from openwork.inverse.penalties import Penalty as Penalty
from openwork.inverse.penalties import composite as composite
from openwork.inverse.penalties import regularised_ompr as regularised_ompr
from openwork.inverse.pursuit import Pursuit as Pursuit
from openwork.inverse.pursuit import group_omp as group_omp
from openwork.inverse.pursuit import group_ompr as group_ompr
