"""The figures of a report: a file for each, named as it is.

Each declares its figure by :func:`kdx_analysis.plots.figure.figure`; the folder is scanned, so that
a new file is all that a new figure takes.
"""
