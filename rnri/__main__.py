"""The command ``python -m rnri``; :mod:`rnri.cli` defines its options."""

import sys

if __name__ == "__main__":
    try:
        from rnri.cli import app  # imports PyTorch, which takes seconds

        app(prog_name="python -m rnri")
    except KeyboardInterrupt:
        sys.exit(130)
