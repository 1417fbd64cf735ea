"""Counting: densities with their denominators."""

from openwork.metrics.density import Densities as Densities
from openwork.metrics.density import densities as densities
