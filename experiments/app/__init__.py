"""The web page: an interactive demo of ``rnri``, ``nao`` and ``seedselect``, and a blind comparison of finished runs.

The layout and the event handlers are in :mod:`experiments.app.page` and in the ``*_tab`` modules, which use Gradio. The
computations are in modules that do not import Gradio. This package may import ``experiments.cache``,
``experiments.config``, ``experiments.evaluation``, ``experiments.reporting`` and ``experiments.runtime``. No other
package imports this package.
"""
