"""What a pattern does to attention: what it loses, what it reaches, what it costs.

Measures of weights and outputs take the user's own q, k and v, in any element type and with any batch and
heads, and are exact in float64; none of them ever holds a square array.
"""

from .comparison import Comparison, compare, pareto_front
from .concentration import attention_entropy, effective_attention
from .cost import Complexity, complexity
from .flow import GradientFlow, gradient_flow
from .loss import information_gap, kl_divergence, output_error, recall, total_variation
from .maps import AttentionMap, attention_map
from .reach import Connection, ReceptiveField, layers_to_connect, receptive_field
from .table import Table

__all__ = [
    "AttentionMap",
    "Comparison",
    "Complexity",
    "Connection",
    "GradientFlow",
    "ReceptiveField",
    "Table",
    "attention_entropy",
    "attention_map",
    "compare",
    "complexity",
    "effective_attention",
    "gradient_flow",
    "information_gap",
    "kl_divergence",
    "layers_to_connect",
    "output_error",
    "pareto_front",
    "recall",
    "receptive_field",
    "total_variation",
]
