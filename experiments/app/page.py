"""The page: its tabs, its look, and how it is served."""

from __future__ import annotations

from pathlib import Path

import gradio as gr

from experiments.app.compare_tab import KEYS, Booth, compare_tab
from experiments.app.context import Studio
from experiments.app.edit_tab import edit_tab
from experiments.app.rare_tab import rare_tab
from experiments.app.seeds_tab import seeds_tab

CSS = """
.gradio-container { max-width: 1200px !important; margin: 0 auto !important; }
.fault { color: #b42318; margin: 0; }
.dark .fault { color: #fda29b; }
.said { margin: 0; }
.examples .caption-label { max-width: 100%; left: 4px; white-space: normal; }
.examples .grid-wrap { overflow: hidden; padding-top: 2.2rem; min-height: 0 !important; height: auto !important; }
.examples .grid-container { grid-template-columns: repeat(var(--grid-cols, 6), minmax(0, 1fr)) !important; }
.examples .thumbnail-lg { min-width: 0; }
#edit-both { max-width: 460px; }
#edit-both img { object-fit: contain !important; }
"""
NARROW = """<style>
@media (max-width: 480px) {
  .gradio-container, .gradio-container .main, .gradio-container .wrap, .gradio-container .contain {
    box-sizing: border-box; min-width: 0 !important; max-width: 100vw !important;
  }
  .gradio-container .main { padding: 8px !important; }
  .gradio-container .tab-container { min-width: 0; overflow: hidden; }
  .gradio-container [role=tab] { padding: 0 8px !important; font-size: 14px !important; }
}
</style>"""
"""In the head: Gradio leaves media queries out of what it takes as ``css``."""
CLEAN_EVERY, KEEP = 600, 3600
"""Seconds: how often uploads and pictures are cleaned up, and how long each is kept."""


def build(studio: Studio, folder: Path, booth: Booth | None = None) -> gr.Blocks:
    """The page of ``studio``, with the ``booth`` of a run to rate; what is downloaded lies in ``folder``."""
    with gr.Blocks(title="Seed exploration", analytics_enabled=False, delete_cache=(CLEAN_EVERY, KEEP)) as page:
        gr.Markdown("# Seed exploration\nWhat a seed makes of a prompt: inverted, edited, averaged, optimized.")
        with gr.Tabs():
            with gr.Tab("Edit", id="edit"):
                edit_tab(studio, folder)
            with gr.Tab("Seeds", id="seeds"):
                seeds_tab(studio)
            with gr.Tab("Rare concept", id="rare"):
                rare_tab(studio, folder)
            with gr.Tab("Compare", id="compare"):
                compare_tab(booth, folder)
    return page.queue(default_concurrency_limit=4, max_size=32)


def serve(page: gr.Blocks, *, host: str, port: int, most_bytes: int) -> None:
    """Serves the page until the process is interrupted.

    Raises:
        OSError: the port is taken.
    """
    # Of a file that Gradio refuses it says no more than "Error": our own bound, which is lower, says why.
    page.launch(
        server_name=host, server_port=port, share=False, max_file_size=4 * most_bytes, show_error=True,
        quiet=True,
        footer_links=[], run_history=False, ssr_mode=False, mcp_server=False, prevent_thread_lock=True,
        css=CSS, head=KEYS + NARROW, theme=gr.themes.Soft(),
    )  # fmt: skip
    print(f"The page is at http://{host}:{port}", flush=True)
    page.block_thread()
