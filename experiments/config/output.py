"""Text output to terminals whose encoding is not UTF-8."""

from __future__ import annotations

import io
import sys


def replace_unencodable() -> None:
    """Make standard output and standard error print ``?`` for characters that the terminal cannot show.

    By default, Python raises UnicodeEncodeError for a character that the encoding does not contain, for example for an
    arrow in a table if ``PYTHONIOENCODING=latin-1``. Result files are not affected, because they are written in UTF-8.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
            stream.reconfigure(errors="replace")
