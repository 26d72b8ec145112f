"""Language modelling: perplexity by position on long documents.

python -m reports.scenarios.language [--quick]
"""

from __future__ import annotations

from . import documents
from .perplexity import Scenario

__all__ = ["FAMILIES", "SCENARIO"]

FAMILIES = (
    "sink_window",
    "window",
    "strided",
    "dilated",
    "bigbird",
    "longformer",
    "random",
    "log_sparse",
    "block_local",
)

SCENARIO = Scenario("language", documents.language, FAMILIES, (4096,))

if __name__ == "__main__":
    SCENARIO.run()
