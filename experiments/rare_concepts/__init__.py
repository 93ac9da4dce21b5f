"""Experiments of the NAO paper: images of rare concepts (Table 3), and paths and centroids of seeds (Table 2)."""
