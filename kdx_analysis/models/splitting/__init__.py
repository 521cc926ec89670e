"""A student into experts: stages are found, layers narrowed, the copies computed side by side."""
