"""Graphs and transcoders in other tools' forms."""
