"""Faithfulness: does attention say what an ablation confirms, and what do experts look at?

And is what an attribution shows the model's doing, or that of the images alone?
"""
