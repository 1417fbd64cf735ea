"""Counting: densities with their denominators, connections, costs of training."""

from openwork.metrics.density import Densities as Densities
from openwork.metrics.density import densities as densities
from openwork.metrics.effective import effective_masks as effective_masks
from openwork.metrics.essential import Curve as Curve
from openwork.metrics.essential import Essential as Essential
from openwork.metrics.essential import abrupt as abrupt
from openwork.metrics.essential import bisected as bisected
from openwork.metrics.essential import essential_sparsity as essential_sparsity
from openwork.metrics.essential import induced_sparsity as induced_sparsity
from openwork.metrics.essential import mask_cosine as mask_cosine
from openwork.metrics.essential import sparsity_curve as sparsity_curve
from openwork.metrics.perplexity import Agreement as Agreement
from openwork.metrics.perplexity import Perplexity as Perplexity
from openwork.metrics.perplexity import agreement as agreement
from openwork.metrics.perplexity import perplexity as perplexity
from openwork.metrics.pq import entries_needed as entries_needed
from openwork.metrics.pq import pq_index as pq_index
from openwork.metrics.search import expected_best as expected_best
from openwork.metrics.training import drop_grow_macs as drop_grow_macs
from openwork.metrics.training import step_macs as step_macs
