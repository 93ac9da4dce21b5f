"""Lightning tasks that join the core packages and write down what they measure; none of the core's mathematics."""

from experiments.config.project import register

register()  # configs that are composed outside `train.py` name embedded files too
