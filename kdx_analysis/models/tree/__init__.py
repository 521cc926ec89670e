"""The neural tree: hardened gates, their exports, and how alike two trees are."""

from kdx_analysis.models.tree.tree import Tree

__all__ = ["Tree"]
