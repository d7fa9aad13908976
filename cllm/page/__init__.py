"""The page for browsers: static files and the rendering of Markdown, over the public endpoints."""

from __future__ import annotations

from cllm.page.page import Page, needs_no_key

__all__ = ["Page", "needs_no_key"]
