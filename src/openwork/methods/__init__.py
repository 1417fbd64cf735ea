"""The methods: functions that return recipes, as in ``from openwork.methods import magnitude, spode``."""

from openwork.methods.acdc import acdc as acdc
from openwork.methods.beta_rank import beta_rank as beta_rank
from openwork.methods.dsnot import dsnot as dsnot
from openwork.methods.ecoflap import ecoflap as ecoflap
from openwork.methods.global_mp import global_mp as global_mp
from openwork.methods.gradual_magnitude import gradual_magnitude as gradual_magnitude
from openwork.methods.grasp import grasp as grasp
from openwork.methods.group_importance import group_importance as group_importance
from openwork.methods.icbs import icbs as icbs
from openwork.methods.imp import imp as imp
from openwork.methods.index import METHODS as METHODS
from openwork.methods.index import Method as Method
from openwork.methods.index import find as find
from openwork.methods.index import get as get
from openwork.methods.index import names as names
from openwork.methods.magnitude import magnitude as magnitude
from openwork.methods.masksparsity import masksparsity as masksparsity
from openwork.methods.obspa import obspa as obspa
from openwork.methods.powerpropagation import powerpropagation as powerpropagation
from openwork.methods.precrop import precrop as precrop
from openwork.methods.probmask import probmask as probmask
from openwork.methods.random import random as random
from openwork.methods.random_search import random_search as random_search
from openwork.methods.rigl import rigl as rigl
from openwork.methods.sap import sap as sap
from openwork.methods.sequential_attention_pp import sequential_attention_pp as sequential_attention_pp
from openwork.methods.set_ import set_ as set_
from openwork.methods.snip import snip as snip
from openwork.methods.sparsegpt import sparsegpt as sparsegpt
from openwork.methods.spode import spode as spode
from openwork.methods.spode_iterative import spode_iterative as spode_iterative
from openwork.methods.str_ import str_ as str_
from openwork.methods.synflow import synflow as synflow
from openwork.methods.taylor import taylor as taylor
from openwork.methods.wanda import wanda as wanda
from openwork.methods.woodfisher import woodfisher as woodfisher

set = set_
"""The index name of SET; ``set_`` is the same function under a name that hides nothing."""
str = str_
"""The index name of STR, likewise."""

__all__ = [*names()]  # noqa: PLE0604  (all strings)
