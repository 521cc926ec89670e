"""Fidelity: what the student got from its teacher, and whether another teacher would have given it.

(method, §8)
"""
