"""Drawing: matplotlib alone, which knows no result."""
