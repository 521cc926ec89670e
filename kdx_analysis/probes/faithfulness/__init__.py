"""Faithfulness: does attention say what an ablation confirms?

``ablation`` takes every expert away and sets what that costs beside the pathways; ``attribution``
shows what experts look at, ``explanation`` a whole path, and ``sanity`` whether that is the model's
doing or the images'.
"""
