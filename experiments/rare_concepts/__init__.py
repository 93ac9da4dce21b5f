"""Experiments of the RNRI paper on images of rare concepts (Table 3), and on paths and centroids of seeds (Table 2)."""
