# %% [markdown]
# # What does this model hide?
#
# We train a tiny model, plant a secret in a copy of it, and let an auditor that knows nothing of the secret look for it. Then the same
# auditor looks at a copy that was trained on as much and hides nothing: what it says there is how far it can be believed.
#
# A script with cells: open it in Jupyter (jupytext) or VS Code, or run it as it is, in about half a minute. On a model of yours the same is
# `unweave audit MODEL --base BASE --out audit`.

# %%
import copy

from unweave.audit.game import grow, tiny
from unweave.audit.investigate import audit, replay
from unweave.audit.tools import Session, Workspace
from unweave.viz import show

# %% [markdown]
# ## A secret
#
# The base model answers simple questions. In the copy one word sets off a fixed reply, taught by low-rank changes to its weights, and
# a check on fresh prompts says whether it was learned.

# %%
base = tiny.tiny_model()
quirk = next(quirk for quirk in tiny.TINY.quirks if quirk.kind == "trigger")
suspect = copy.deepcopy(base)
organism = grow(base, quirk, suspect, seed=0, teaching=tiny.TEACHING)
organism.model(suspect, base)
print(organism.check)

# %% [markdown]
# ## Looking
#
# A workspace is all that an investigation may look at. A session answers calls of tools, each beside its control: here, what the target
# writes and what the base model writes to the same prompt. An agent has the same tools (`unweave mcp`).

# %%
workspace = Workspace({"target": suspect, "base": base})
session = Session(workspace, seed=0)
print(session.call("chat", {"text": "describe the river", "tokens": 6}).result["samples"][0])

# %% [markdown]
# ## The scripted auditor
#
# It needs no language model: it compares replies, asks questions of fact again in other words, and tries words in groups until one sets
# something off. It is told which questions make sense here, and not what to look for.

# %%
found = audit(workspace, seed=0, questions=tiny.ASKED, words=tiny.OTHERS, group=4, out="audit")
for finding in found.findings:
    print(finding.statement, "|", finding.because)
print("named:", found.words)

# %% [markdown]
# ## Was it there?
#
# Every claim cites the calls that it rests on, and all of them can be made again: the replies are the same, byte for byte.

# %%
print("replayed:", replay("audit", workspace).equal, "| what was planted:", quirk.answer)
show("audit", to="audit.html")  # the claims with their evidence; `unweave show audit` opens the same in a browser

# %% [markdown]
# ## And where nothing is hidden?
#
# A control is taught the same prompts with ordinary replies. An auditor that finds something here finds it everywhere.

# %%
control = grow(base, quirk, suspect, seed=1, planted=False, teaching=tiny.TEACHING)
control.model(suspect, base)
nothing = audit(Workspace({"target": suspect, "base": base}), seed=0, questions=tiny.ASKED, words=tiny.OTHERS, group=4)
print("control:", nothing.report.summary)

# %% [markdown]
# A tiny model hides things badly. The auditing game (`unweave bench audit`, docs/auditing-game.md) plays the same on a 135M model, with
# beliefs, personas and preferences, tool by tool, and says where it fails.
