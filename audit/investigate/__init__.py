"""An audit from beginning to end: by a script without a language model, or by a language model behind an endpoint.

    found = audit(Workspace({"target": model, "base": base}, {"resid": dictionary}), out="audit")
    found.findings
    agent(workspace, Endpoint("http://localhost:8000/v1", "some-model"), out="audit-2")
    replay("audit", workspace).equal

Modules: auditor.py the script, its steps survey.py, triggers.py, inside.py, what it asks questions.py, how it reads words.py and
asking.py · agent.py the loop · investigation.py what stays · command.py the command.
"""

from .agent import agent
from .asking import Claim
from .auditor import audit
from .investigation import Investigation, replay
from .questions import Questions

__all__ = ["Claim", "Investigation", "Questions", "agent", "audit", "replay"]
