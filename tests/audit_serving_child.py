"""`unweave` in a process of its own where loading and one tool are as noisy as a careless library: python audit_serving_child.py mcp …

`budget` writes NOISE in three ways, says STARTED on standard error, and takes half a second.
"""

import dataclasses
import os
import sys
import time

import unweave.saes
from unweave.audit.tools import TOOLS
from unweave.viz.cli import main


def noise() -> None:
    print("NOISE of a print", flush=True)
    os.write(1, b"NOISE of a library\n")
    os.system("echo NOISE of a child process; timeout 5 cat")  # which would take the protocol's input


def loud(*given, **known):
    noise()
    return load_model(*given, **known)


def slow(session):
    noise()
    print("STARTED", file=sys.stderr, flush=True)
    time.sleep(0.5)
    return budget.function(session)


load_model, unweave.saes.load_model = unweave.saes.load_model, loud
budget = TOOLS["budget"]
TOOLS["budget"] = dataclasses.replace(budget, function=slow)
main()
