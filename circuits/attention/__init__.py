"""Attention explained: edges split over heads, scores split over pairs of nodes."""
