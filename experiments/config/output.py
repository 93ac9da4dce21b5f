"""Text output of all commands to terminals whose encoding is not UTF-8."""

from __future__ import annotations

import io
import sys


def replace_unencodable() -> None:
    """Make standard output and error print ``?`` for a character that is not part of their encoding.

    By default, Python raises UnicodeEncodeError for such a character, for example if ``PYTHONIOENCODING=latin-1`` and a
    table contains an arrow. Result files are written in UTF-8 and contain all characters.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
            stream.reconfigure(errors="replace")
