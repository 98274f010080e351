"""Baselines over heads and MLPs: edge attribution patching and ACDC."""
