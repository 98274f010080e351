"""Dictionaries on disk: our own folder, and the files of other libraries (registry.py lists them)."""
