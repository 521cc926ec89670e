"""Statistics over paired seeds: intervals, p-values, and differences of what both sides have."""
