"""Figures of many runs as tables for a paper."""
