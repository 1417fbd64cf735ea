"""What can be measured about a model and its data."""

from openwork.stats.fisher import FisherDiagonal as FisherDiagonal
from openwork.stats.flow import SynapticFlow as SynapticFlow
from openwork.stats.gradients import GradientFlow as GradientFlow
from openwork.stats.gradients import LossGradient as LossGradient
from openwork.stats.grams import Grams as Grams
from openwork.stats.grams import InputGram as InputGram
from openwork.stats.inputs import InputMoments as InputMoments
from openwork.stats.inputs import InputSquares as InputSquares
from openwork.stats.layer_gradients import LayerGradients as LayerGradients
from openwork.stats.mask_loss import LossAtMasks as LossAtMasks
from openwork.stats.mask_loss import MaskLoss as MaskLoss
from openwork.stats.readers import NoiseGram as NoiseGram
from openwork.stats.readers import ReaderGram as ReaderGram
from openwork.stats.samples import SampleGradients as SampleGradients
from openwork.stats.taylor import UnitImportance as UnitImportance
