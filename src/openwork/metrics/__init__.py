"""Counting: densities with their denominators."""

from openwork.metrics.density import Densities as Densities
from openwork.metrics.density import densities as densities
from openwork.metrics.perplexity import Agreement as Agreement
from openwork.metrics.perplexity import Perplexity as Perplexity
from openwork.metrics.perplexity import agreement as agreement
from openwork.metrics.perplexity import perplexity as perplexity
