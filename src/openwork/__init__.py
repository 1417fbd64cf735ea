"""openwork makes neural networks sparse, keeps their accuracy, and says exactly what it did."""
from openwork.version import __version__
from openwork.engine import attach, cycle, prune
