"""Distillers that see features, one file each; every file here is found by itself."""
