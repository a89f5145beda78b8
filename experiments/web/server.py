"""Starting and ending the page: one process, no requests to other hosts but the services."""

from __future__ import annotations

import contextlib
import hmac
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from experiments.web.desk import PageDesk
from pretrain.terminal import shown

USER = "nava"
STATIC = Path(__file__).parent / "static"
FONTS, MONO = ("system-ui", "sans-serif"), ("ui-monospace", "monospace")
MOST_UPLOAD = "64mb"
POLICY = "; ".join(
    (
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval'",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "media-src 'self' data: blob:",
        "font-src 'self' data:",
        "worker-src 'self' blob:",
        "connect-src 'self' blob: data:",
        "object-src 'none'",
        "frame-ancestors 'self'",
        "base-uri 'self'",
    )
)
HEADERS = ((b"content-security-policy", POLICY.encode()), (b"referrer-policy", b"no-referrer"))


class OwnHostOnly:
    """ASGI: every answer says that a browser may ask this host only."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), *HEADERS]}
            await send(message)

        await self.app(scope, receive, with_headers)


def page_app(desk: PageDesk, password: str = "", title: str = "NAVA") -> FastAPI:
    """The page as an application; password: of the user `nava`, "" = no login."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when Gradio is imported
    import gradio as gr  # pyright: ignore[reportMissingImports] (an extra)

    from experiments.web.events import PageEvents, opening_of, wire
    from experiments.web.page import form_parts, history_parts, slot_parts, vote_parts

    opening, wrong = opening_of(desk)
    for line in wrong:
        print(f"warning: {shown(line)}", file=sys.stderr, flush=True)
    with gr.Blocks(title=title, analytics_enabled=False, delete_cache=(3600, 86_400)) as blocks:
        gr.HTML(f'<div class="nava-head"><h1>{title}</h1><p>pictures and speech from one prompt</p></div>')
        with gr.Tabs() as tabs:
            with gr.Tab("Make", id="make"):
                form = form_parts(opening)
                progress = gr.HTML(elem_id="nava-progress")
                slots = slot_parts()
                vote = vote_parts()
            with gr.Tab("History", id="history"):
                history = history_parts()
        wire(PageEvents(desk, form, slots, vote, history, opening), tabs, progress)
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    theme = gr.themes.Default(primary_hue="indigo", neutral_hue="slate", font=FONTS, font_mono=MONO)
    mounted = gr.mount_gradio_app(
        app,
        blocks.queue(default_concurrency_limit=8, api_open=False),
        path="/",
        auth=_login(password) if password else None,
        allowed_paths=[str(desk.store.root / "clips")],
        blocked_paths=[str(desk.store.root / name) for name in ("asked", "comparisons")],
        footer_links=[],
        run_history=False,
        max_file_size=MOST_UPLOAD,
        show_error=True,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        theme=theme,
        css=(STATIC / "page.css").read_text(encoding="utf-8"),
        head=f"<script>{(STATIC / 'page.js').read_text(encoding='utf-8')}</script>",
    )
    mounted.add_middleware(OwnHostOnly)  # type: ignore[arg-type]
    return mounted


def _login(password: str) -> Callable[[str, str], bool]:
    def right(user: str, given: str) -> bool:
        same = hmac.compare_digest(given.encode(), password.encode())
        return hmac.compare_digest(user.encode(), USER.encode()) and same

    return right


def run_page(desk: PageDesk, listener: socket.socket, password: str, where: str) -> None:
    """Until SIGINT or SIGTERM; jobs go on at their services."""
    app: Any = page_app(desk, password)
    config = uvicorn.Config(
        app, access_log=False, log_level="warning", server_header=False, timeout_graceful_shutdown=2
    )
    login = f" (user {USER}, password as given)" if password else ""
    print(f"page at {shown(where)}{login}; Ctrl-C ends it", flush=True)
    try:
        with contextlib.suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[listener])
    finally:
        desk.close()
