"""A student into experts: its stages are found, its layers narrowed, the copies computed side by
side.
"""
