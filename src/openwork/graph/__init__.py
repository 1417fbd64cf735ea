"""From a model and an example to the sets of entries that must be removed together."""

from openwork.graph.cost import count_macs as count_macs
from openwork.graph.example import Example as Example
from openwork.graph.groups import Graph as Graph
from openwork.graph.groups import Group as Group
from openwork.graph.groups import build_graph as build_graph
from openwork.graph.trace import GraphRefused as GraphRefused
