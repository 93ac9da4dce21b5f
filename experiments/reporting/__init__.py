"""Results of finished runs: tables, figures, result files, sweep reports and human ratings."""
