"""The web page: an interactive demo of ``rnri``, ``nao`` and ``seedselect``, and a blind comparison of finished runs.

Modules without Gradio compute; :mod:`experiments.app.page` and the ``*_tab`` modules define the layout and the event
handlers. The package may import the cache, config, evaluation, reporting and runtime of the experiments. Nothing
imports the package.
"""
