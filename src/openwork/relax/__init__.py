"""How a weight and a mask give the weight used in forward and backward, when zeros are not simply written."""

from openwork.relax.attention import SoftmaxAttention as SoftmaxAttention
from openwork.relax.masking import Masking as Masking
from openwork.relax.power import Power as Power
from openwork.relax.probability import Probabilities as Probabilities
from openwork.relax.threshold import SoftThreshold as SoftThreshold
