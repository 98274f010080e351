"""File formats of dictionaries. Each module has `save(dictionary, folder)` and `load(folder)`."""
