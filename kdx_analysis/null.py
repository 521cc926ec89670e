"""What a null says: the range that a fresh draw of it falls into, and the p-value of a value beside it.

Every null of the package is drawn where its own model or table is known, and read here.
"""
