"""What something costs, timed on this machine against a plain implementation of the same.

Ratios within a round of one run say what times of one machine on one day don't; beside them stand
the machine's limits, and a null: the plain implementation, once more. A bench is declared in a file
of its own in ``benches``.
"""

from kdx_analysis.bench.contract import (
    BENCHES,
    Bench,
    Contest,
    Contestant,
    Setting,
    bench,
)
from kdx_analysis.bench.running import Row, run_bench
from kdx_analysis.bench.table import Table

__all__ = [
    "BENCHES",
    "Bench",
    "Contest",
    "Contestant",
    "Row",
    "Setting",
    "Table",
    "bench",
    "run_bench",
]
