"""The interactive page: it shows what ``rnri``, ``nao`` and ``seedselect`` do and what runs left, and adds no method.

Modules without Gradio compute; :mod:`experiments.app.page` and the modules of tabs lay out and connect. Of the experiments only
results and judges may be imported, and nothing imports the page.
"""
