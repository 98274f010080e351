"""`unweave COMMAND …`: chooses the command; flags, errors and exit codes are those of saes/cli.py."""

from __future__ import annotations

import difflib
import os
import sys

# OpenMP threads that spin at barriers wait, beside another busy process, for one that is not running: the same trace took 68 to
# 142 s instead of 23. Read when torch is imported, so it stands before the imports.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from ..audit.monitor.command import monitor
from ..audit.scratchpad.command import scratchpad
from ..saes.cli import parse_and_run
from . import doctor
from .commands import COMMANDS

OTHER_AUDITS = {"--monitor": monitor, "--scratchpad": scratchpad}


def usage() -> str:
    """The list of commands, from their docstrings."""
    lines = ["usage: unweave COMMAND …   (unweave COMMAND --help tells its flags; every command takes --json)", ""]
    for name, command in COMMANDS.items():
        lines.append(f"  {name:<10} {(command.__doc__ or '').splitlines()[0]}")
    return "\n".join(lines)


def run(arguments: list[str]) -> int:
    """Run one command line; returns the exit code."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return 0
    name, *rest = arguments
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else "unweave --help lists them"
        print(f"error: expected a command ({', '.join(COMMANDS)}); got {name!r}; {hint}", file=sys.stderr)
        return 2
    if name == "doctor":
        return doctor.run(rest)
    for flag, other in OTHER_AUDITS.items() if name == "audit" else ():
        if flag in rest:
            return parse_and_run(other, [one for one in rest if one != flag], f"unweave audit {flag}")
    return parse_and_run(COMMANDS[name], rest, f"unweave {name}")


def main() -> None:
    """Entry point of `unweave`."""
    sys.exit(run(sys.argv[1:]))
