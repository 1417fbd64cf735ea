"""The command line: ``openwork demo | prune | inspect | methods``."""

from openwork.cli.main import main as main
