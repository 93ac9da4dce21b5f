"""The web page: an interactive demo of ``rnri``, ``nao`` and ``seedselect``, and a blind comparison of finished runs.

:mod:`experiments.app.page` and the ``*_tab`` modules contain the layout and the event handlers, and use Gradio. The
modules with computations do not import Gradio. This package may import ``experiments.cache``, ``experiments.config``,
``experiments.evaluation``, ``experiments.reporting`` and ``experiments.runtime``. No other package imports this
package.
"""
