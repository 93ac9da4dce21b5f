"""Reports on finished runs: tables, figures, result files, reports on sweeps and human ratings."""
