"""The index: every method, one entry each. Nothing is registered by importing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

from openwork.core.recipe import Recipe
from openwork.errors import RecipeError, did_you_mean
from openwork.methods.cards import CARDS, Card
from openwork.methods.claims import claims


@dataclass(frozen=True)
class Method:
    """One method: where its function is and what it needs.

    ``ranks`` says where several processes choose the masks of one: under ``DDP``, where every rank holds all weights,
    and with ``FSDP2``, where they are sharded. A test holds every method to it.
    """

    name: str
    title: str
    paper: str
    drive: str
    needs: str
    structures: str
    ranks: str = "DDP"

    @property
    def claims(self) -> tuple[tuple[str, str], ...]:
        """The claims of its paper, as (text, state)."""
        return claims().get(self.name, ())

    @property
    def tally(self) -> str:
        """How many claims hold here, and how many do in part."""
        states = [state for _, state in self.claims]
        held, partly = (sum(state.startswith(word) for state in states) for word in ("held", "in part"))
        return f"{held} of {len(states)}" + (f", {partly} in part" if partly else "")

    @property
    def card(self) -> Card:
        """What kind of method it is, in the words of the handbook."""
        return CARDS[self.name]

    @property
    def module(self) -> str:
        return f"{self.name}_" if self.name in ("set", "str") else self.name


ANY = "any"
FREE = "any without regions"
BOTH = "DDP, FSDP2"

# fmt: off
METHODS: tuple[Method, ...] = (
    Method("magnitude", "Keep the largest weights or units", "Han et al., NeurIPS 2015", "prune", "nothing", ANY, BOTH),
    Method("random", "Keep random units with good layer shares", "Liu et al., ICLR 2022", "prune", "nothing", ANY,
           BOTH),
    Method("random_search", "The best of many random masks", "Farahani, 2024", "prune", "data, loss", ANY, BOTH),
    Method("global_mp", "Global magnitude, a floor per layer", "Gupta et al., CAI 2024", "prune", "nothing", ANY, BOTH),
    Method("gradual_magnitude", "Magnitude on a cubic curve", "Zhu and Gupta, 2018", "attach", "training", ANY, BOTH),
    Method("taylor", "First-order change of the loss", "Molchanov et al., CVPR 2019", "prune", "data, loss", ANY,
           BOTH),
    Method("snip", "Connection sensitivity", "Lee et al., ICLR 2019", "prune", "data, loss", ANY, BOTH),
    Method("grasp", "Preserve the gradient flow", "Wang et al., ICLR 2020", "prune", "data, loss", ANY),
    Method("synflow", "Data-free iterative path strength", "Tanaka et al., NeurIPS 2020", "prune", "input shape", ANY),
    Method("spode", "Masks travel along a sparsity-indexed ODE", "Mo et al., ICML 2023", "prune", "data, loss", ANY),
    Method("spode_iterative", "SpODE in rounds with fine-tuning", "Mo et al., ICML 2023", "cycle", "data, loss", ANY),
    Method("imp", "Iterative magnitude with rewinding", "Frankle and Carbin, ICLR 2019", "cycle", "training", ANY,
           BOTH),
    Method("sap", "Rounds that prune what the weights can spare", "Diao et al., ICLR 2023", "cycle", "training", FREE),
    Method("acdc", "Compressed and decompressed phases", "Peste et al., NeurIPS 2021", "attach", "training", ANY, BOTH),
    Method("set", "Drop the smallest, grow at random", "Mocanu et al., 2018", "attach", "training", FREE, BOTH),
    Method("rigl", "Drop the smallest, grow by gradient", "Evci et al., ICML 2020", "attach", "training", FREE, BOTH),
    Method("sequential_attention_pp", "Softmax attention over blocks, phases of search",
           "Yasuda et al., NeurIPS 2024", "attach", "training", FREE),
    Method("powerpropagation", "Train a root of the weights", "Schwarz et al., NeurIPS 2021", "attach", "training",
           ANY),
    Method("str", "Soft thresholds learned per layer", "Kusupati et al., ICML 2020", "attach", "training", "element"),
    Method("probmask", "Keep-probabilities under one budget", "Zhou et al., CVPR 2021", "attach", "training", ANY),
    Method("woodfisher", "Second order, survivors are corrected", "Singh and Alistarh, NeurIPS 2020", "prune",
           "data, loss", "element, N:M"),
    Method("wanda", "Weight times the norm of its input", "Sun et al., ICLR 2024", "prune", "data", ANY, BOTH),
    Method("sparsegpt", "Layer-wise second order, survivors are corrected", "Frantar and Alistarh, ICML 2023", "prune",
           "data", ANY),
    Method("dsnot", "Swap weights until expected outputs match", "Zhang et al., ICLR 2024", "prune", "data",
           "element, N:M", BOTH),
    Method("ecoflap", "Layer shares from forward passes, then Wanda", "Sung et al., ICLR 2024", "prune", "data, loss",
           FREE),
    Method("icbs", "Re-decide blocks of weights by a quadratic model", "Rosenberg et al., 2024", "prune", "data, loss",
           "element"),
    Method("obspa", "Whole units by layer-wise second order, readers are refitted", "Wang et al., 2024", "prune",
           "data", "coupled, input channels"),
    Method("beta_rank", "Filter norms times how much the filter's output varies", "Homayounfar et al., 2023", "prune",
           "data", ANY),
    Method("precrop", "Crop a fresh network to the layer shares of pruning at initialisation", "Cai et al., 2022",
           "prune", "nothing", FREE),
    Method("masksparsity", "Penalise the scales of chosen channels only, then remove them", "Jiang et al., MIR 2023",
           "attach", "training", "coupled"),
    Method("group_importance", "Coupled units ranked slice by slice", "Fang et al., CVPR 2023", "prune",
           "nothing", ANY),
)
# fmt: on


def names() -> tuple[str, ...]:
    """Every method name."""
    return tuple(m.name for m in METHODS)


def find(name: str) -> Method:
    """The entry of one method.

    Raises:
        RecipeError: unknown name; the nearest are listed.
    """
    for method in METHODS:
        if method.name == name:
            return method
    raise RecipeError(f"unknown method {name!r}; {did_you_mean(name, names())}")


def get(name: str) -> Callable[..., Recipe]:
    """The function of one method; its module is imported now."""
    method = find(name)
    return getattr(import_module(f"openwork.methods.{method.module}"), method.module)
