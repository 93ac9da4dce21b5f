"""Hides messages of other libraries in the commands of this project. Importing ``rnri`` does not hide messages."""

from __future__ import annotations

import logging
import warnings

WARNINGS = (
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",
    r"__array__ implementation doesn't accept a copy keyword",
    r"IProgress not found",
)
"""Regular expressions for the beginnings of hidden warnings, which concern the internal code of other libraries."""
LOG_MESSAGES = (
    "No LoRA keys associated to",
    "Token indices sequence length is longer than",
    "GPU available: False",
    "TPU available: False",
    "HPU available: False",
    "💡 Tip: For seamless",
)
"""Beginnings of hidden log messages, which a user of the commands does not need."""
TRUNCATED = "The following part of your input was truncated"
"""Beginning of the log message of diffusers about a prompt that is too long for the text encoder."""
LOGGERS = (
    "diffusers",
    "transformers",
    "lightning.pytorch.utilities.rank_zero",
    "lightning.fabric.utilities.rank_zero",
)


def quiet_libraries() -> None:
    """Hide progress bars of weight loading, and messages of other libraries about their own code.

    All other warnings and errors of diffusers, transformers and Lightning are still shown. The first truncated prompt
    of a process is reported in one line, without the list of truncated words.
    """
    for message in WARNINGS:  # before the imports, which emit some warnings
        warnings.filterwarnings("ignore", message=message)
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()
    for name in LOGGERS:
        logger = logging.getLogger(name)
        for target in (logger, *logger.handlers):
            if not any(isinstance(each, _Filter) for each in target.filters):
                target.addFilter(_Filter())


class _Filter(logging.Filter):
    """Drops messages of ``LOG_MESSAGES``, and shortens the first message about a truncated prompt."""

    reported_truncation = False

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        if message.startswith(TRUNCATED):
            if _Filter.reported_truncation:
                return False
            _Filter.reported_truncation = True
            record.msg = "A prompt is too long for the text encoder of the model, which ignores the end of the prompt."
            record.args = ()
        return not message.startswith(LOG_MESSAGES)
