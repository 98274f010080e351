"""placeholder"""

from pathlib import Path


def place_of(path, given):
    return Path(path), given
