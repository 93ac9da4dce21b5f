"""Experiments that compare inversion methods, as in Table 1 and Figures 3 to 7 of the RNRI paper."""
