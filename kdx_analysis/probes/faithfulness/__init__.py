"""Faithfulness: does attention say what an ablation confirms, what do experts look at, and is that
the model's doing?
"""
