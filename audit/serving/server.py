"""A session's tools as an MCP server, on the official SDK's low-level server: the schemas and replies are exactly the registry's.

    tools/list       every tool with its own words and JSON schema; `readOnlyHint` where it leaves the session as it is
    tools/call       `session.call`: the reply as structured content, and the same JSON as text; `isError` where it is not ok
    resources        store://manifest   what the session may look at
                     run://log          the transcript so far, one JSON object a line
    prompts          investigate        how to audit (words.py)

One session serves whoever connects: budget, board and transcript belong to the audit and not to a connection. Calls are made one
after the other in the order in which they came, in a thread, so that the server answers meanwhile. A call whose client has gone is
finished and stands in the transcript; one that still waited is dropped.

Left out: subscriptions, progress, sampling. Nothing is ever asked of the client, and nothing is sent but answers to it.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from .words import INSTRUCTIONS, INVESTIGATE

if TYPE_CHECKING:
    from mcp.server import Server

    from ..tools import Answer, Session

MANIFEST, LOG, PROMPT = "store://manifest", "run://log", "investigate"
RESOURCES = {
    MANIFEST: ("manifest", "What this audit may look at: models, dictionaries, stores, texts.", "application/json"),
    LOG: ("transcript", "Every call so far and its reply, a JSON object a line.", "application/x-ndjson"),
}


def mcp_server(session: Session) -> Server[Any]:
    """The server of a session, to be run over any transport of the SDK (stdio.py, http.py)."""
    import anyio
    from mcp import MCPError, types
    from mcp.server import Server

    turn = anyio.CapacityLimiter(1)

    async def list_tools(context: Any, params: Any) -> types.ListToolsResult:
        return types.ListToolsResult(tools=described())

    async def call_tool(context: Any, params: types.CallToolRequestParams) -> types.CallToolResult:
        reply = await anyio.to_thread.run_sync(session.call, params.name, params.arguments or {}, limiter=turn)
        text = as_text(reply.to_dict())
        content: list[Any] = [types.TextContent(text=text)]
        data = json.loads(text)
        return types.CallToolResult(content=content, structured_content=data, is_error=not data["ok"])

    async def list_resources(context: Any, params: Any) -> types.ListResourcesResult:
        listed = [
            types.Resource(uri=uri, name=name, description=about, mime_type=kind)
            for uri, (name, about, kind) in RESOURCES.items()
        ]
        return types.ListResourcesResult(resources=listed)

    async def read_resource(context: Any, params: types.ReadResourceRequestParams) -> types.ReadResourceResult:
        if params.uri not in RESOURCES:
            raise MCPError(types.INVALID_PARAMS, f"expected one of {', '.join(RESOURCES)}; got another; list them")
        read = session.log if params.uri == LOG else lambda: as_text(manifest(session))
        text = await anyio.to_thread.run_sync(read)
        kind = RESOURCES[params.uri][2]
        return types.ReadResourceResult(
            contents=[types.TextResourceContents(uri=params.uri, mime_type=kind, text=text)]
        )

    async def list_prompts(context: Any, params: Any) -> types.ListPromptsResult:
        about = "How to audit the model with these tools."
        return types.ListPromptsResult(prompts=[types.Prompt(name=PROMPT, description=about)])

    async def get_prompt(context: Any, params: types.GetPromptRequestParams) -> types.GetPromptResult:
        if params.name != PROMPT:
            raise MCPError(types.INVALID_PARAMS, f"expected the prompt {PROMPT}; got another; list them")
        words = types.TextContent(text=INVESTIGATE)
        return types.GetPromptResult(messages=[types.PromptMessage(role="user", content=words)])

    server: Server[Any] = Server(
        "unweave",
        version=version(),
        title="Unweave audit tools",
        instructions=INSTRUCTIONS,
        on_list_tools=list_tools,
        on_call_tool=call_tool,
        on_list_resources=list_resources,
        on_read_resource=read_resource,
        on_list_prompts=list_prompts,
        on_get_prompt=get_prompt,
    )
    server.middleware.clear()  # the SDK's telemetry, which would follow an exporter that happens to be configured here
    return server


def described() -> list[Any]:
    """The registry's tools as the SDK's `Tool`s."""
    from mcp import types

    from ..tools import TOOLS

    return [
        types.Tool(
            name=tool.name,
            description=f"{tool.description}\n\nGroup: {tool.group}. Costs at least {tool.cost} model runs.",
            input_schema=tool.parameters,
            annotations=types.ToolAnnotations(
                read_only_hint=tool.reads_only, destructive_hint=False, open_world_hint=False
            ),
        )
        for tool in TOOLS.values()
    ]


def as_text(data: Any) -> str:
    """JSON that any UTF-8 stream takes: a lone surrogate, which would end the server's output, becomes `?`."""
    return json.dumps(data, ensure_ascii=False, allow_nan=False).encode("utf-8", "replace").decode()


def manifest(session: Session) -> dict[str, Any]:
    """What `list_models` answers, without a call, and the fingerprints of all."""
    from ..tools import TOOLS
    from ..tools.untrusted import plain

    listed: Answer = TOOLS["list_models"].function(session)
    return {**plain(listed.result), "fingerprints": session.workspace.fingerprints()}


def version() -> str:
    """The installed version of Unweave."""
    from importlib.metadata import version as installed

    return installed("unweave")
