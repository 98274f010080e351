"""The audit's tools for programs that are not Python: an MCP server over stdio and HTTP."""

from .http import serve_http
from .server import mcp_server

__all__ = ["mcp_server", "serve_http"]
