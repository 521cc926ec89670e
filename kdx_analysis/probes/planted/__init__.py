"""Planted truth: explainers whose conflicts are known, and what the probes find in them."""
