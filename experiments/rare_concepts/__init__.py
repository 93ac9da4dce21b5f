"""Experiments that generate and evaluate images of concepts, as in Tables 2 and 3 of the RNRI paper.

Table 3 evaluates images of rare concepts. Table 2 evaluates images that are sampled from interpolated seeds (initial
latents) and from centroids of seeds.
"""
