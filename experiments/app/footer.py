"""The footer of the page: the guide, the paper and the citation."""

from __future__ import annotations

import re
from pathlib import Path

import gradio as gr

from experiments.config.project import project_path

PAPER = "https://arxiv.org/abs/2312.12540"
CITATION = f"""```bibtex
@article{{samuel2023regularized,
  title   = {{Regularized {{Newton-Raphson}} Inversion for Text-to-Image Diffusion Models}},
  author  = {{Samuel, Dvir and Meiri, Barak and Maron, Haggai and Tewel, Yoad and Darshan, Nir
    and Avidan, Shai and Chechik, Gal and Ben-Ari, Rami}},
  journal = {{arXiv preprint arXiv:2312.12540}},
  year    = {{2023}},
  url     = {{{PAPER}}}
}}
```"""


def guide() -> str:
    """Return the guide to the web page as Markdown text, without figures and without links to other files."""
    text = Path(project_path("docs/guides/web_page.md")).read_text(encoding="utf-8")
    text = re.sub(r"^!\[.*?\]\(.*?\)\n", "", text, flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"\[([^\]]+)\]\((?!https?:)[^)]*\)", r"\1", text)


def footer() -> None:
    """Create the footer of the page."""
    gr.Markdown(f"Paper: [Regularized Newton-Raphson Inversion for Text-to-Image Diffusion Models]({PAPER})")
    with gr.Accordion("Guide", open=False, elem_id="guide"):
        gr.Markdown(guide())
    with gr.Accordion("Citation", open=False, elem_id="citation"):
        gr.Markdown(CITATION)
