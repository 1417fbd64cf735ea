"""Whole jobs: train, prune, fine-tune, evaluate, save; killed at any moment, they go on bit for bit."""

from openwork.lab.budget import Budget as Budget
from openwork.lab.job import Job as Job
from openwork.lab.runner import Runner as Runner
