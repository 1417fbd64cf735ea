"""Recipes inside the trainers people already have. Each adapter imports its framework when it is used."""

from openwork.adapters.huggingface import TrainerRun as TrainerRun
from openwork.adapters.huggingface import join_trainer as join_trainer
from openwork.adapters.lightning import lightning_callback as lightning_callback
from openwork.adapters.sharded import gathered as gathered
from openwork.adapters.sharded import load_sharded as load_sharded
from openwork.adapters.sharded import save_sharded as save_sharded
