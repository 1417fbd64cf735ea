"""openwork makes neural networks sparse, keeps their accuracy, and says exactly what it did."""
__version__ = "0.1.0"
from openwork.engine import attach, cycle, prune
