"""The web page: its tabs, its CSS, and the server."""

from __future__ import annotations

from pathlib import Path

import gradio as gr

from experiments.app import compare_tab as compare
from experiments.app import edit_tab as edit
from experiments.app import figure_grid
from experiments.app.compare_tab import KEYBOARD_SHORTCUTS_JS, RatingSession, compare_tab
from experiments.app.context import AppContext
from experiments.app.edit_tab import edit_tab
from experiments.app.footer import footer
from experiments.app.rare_tab import rare_tab
from experiments.app.seeds_tab import seeds_tab

CSS = """
html { overflow-y: scroll; }
.gradio-container { width: 100% !important; max-width: 1200px !important; margin: 0 auto !important; }
.gradio-container .main, .gradio-container .wrap, .gradio-container .contain { width: 100%; }
.gradio-container .tabs, .gradio-container .tabitem { width: 100%; min-width: 0; }
.error { color: #b42318; margin: 0; }
.dark .error { color: #fda29b; }
.status { margin: 0; }
.examples .caption-label { max-width: 100%; left: 4px; white-space: normal; }
.examples .grid-wrap { overflow: hidden; padding-top: 2.2rem; min-height: 0 !important; height: auto !important; }
.examples .grid-container { grid-template-columns: repeat(var(--grid-cols, 6), minmax(0, 1fr)) !important; }
.examples .thumbnail-lg { min-width: 0; }
.step { margin: 0; font-size: 1.05em; font-weight: 600; }
.step b { display: inline-block; width: 1.6em; line-height: 1.6em; border-radius: 50%; text-align: center;
  background: var(--primary-500); color: white; margin-right: 0.3em; }
"""
MOBILE_CSS = (
    """<style>
@media (max-width: 480px) {
  .gradio-container, .gradio-container .main, .gradio-container .wrap, .gradio-container .contain {
    box-sizing: border-box; min-width: 0 !important; max-width: 100vw !important;
  }
  .gradio-container .main { padding: 8px !important; }
  .gradio-container .tab-container { min-width: 0; overflow: hidden; }
  .gradio-container [role=tab] { padding: 0 8px !important; font-size: 14px !important; }
}
"""
    + edit.MOBILE_CSS
    + "</style>"
)
"""CSS for small screens.

The CSS rules are in the head of the page, because Gradio removes media queries from its argument ``css``.
"""
DESCRIPTION = "Invert images to seeds of a diffusion model, then edit, interpolate, average and optimize them."
MAX_FILE_AGE_S = 3600
"""Age in seconds at which uploads and generated images are deleted."""
CLEANUP_INTERVAL_S = 600
"""Interval in seconds at which Gradio deletes uploads and generated images that are older than ``MAX_FILE_AGE_S``."""


def build(context: AppContext, folder: Path, session: RatingSession) -> gr.Blocks:
    """Create the page.

    Files for download are written to ``folder``. ``session`` contains the run that visitors rate.
    """
    with gr.Blocks(
        title="Seed exploration", analytics_enabled=False, delete_cache=(CLEANUP_INTERVAL_S, MAX_FILE_AGE_S)
    ) as page:
        gr.Markdown(f"# Seed exploration\n{DESCRIPTION}\n\n{context.description}")
        with gr.Tabs():
            with gr.Tab("Edit", id="edit"):
                edit_tab(context, folder, page)
            with gr.Tab("Seeds", id="seeds"):
                seeds_tab(context, folder)
            with gr.Tab("Rare concept", id="rare") as tab:
                rare_tab(context, folder, tab)
            with gr.Tab("Compare", id="compare"):
                compare_tab(session, folder)
        footer()
    return page.queue(default_concurrency_limit=4, max_size=32)


def serve(page: gr.Blocks, *, host: str, port: int, max_upload_bytes: int) -> None:
    """Serve the page until the process is interrupted.

    Raises:
        OSError: the port is in use.
    """
    # If an upload exceeds Gradio's size limit, Gradio shows only "Error", without a reason. Therefore Gradio's limit is
    # four times the limit of the page. The page rejects an upload above its own limit with a message that states the
    # reason.
    page.launch(
        server_name=host,
        server_port=port,
        share=False,
        max_file_size=4 * max_upload_bytes,
        show_error=True,
        quiet=True,
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        mcp_server=False,
        prevent_thread_lock=True,
        css=CSS + edit.CSS + compare.CSS + figure_grid.CSS,
        head=KEYBOARD_SHORTCUTS_JS + MOBILE_CSS,
        theme=gr.themes.Soft(),
    )
    print(f"The page is at http://{host}:{port}", flush=True)
    page.block_thread()
