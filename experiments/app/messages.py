"""Whatever goes wrong is one sentence on the page; what nobody foresaw is in the terminal besides."""

from __future__ import annotations

import functools
import html
import inspect
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import gradio as gr

log = logging.getLogger(__name__)
Handler = TypeVar("Handler", bound=Callable[..., Any])


def sentence(error: BaseException) -> str:
    """What a visitor is told of an error: its first line; of one that nobody foresaw, only its kind."""
    if isinstance(error, ValueError | OSError):
        return " ".join(str(error).split()) or type(error).__name__
    return f"this failed on the server ({type(error).__name__}); its terminal says more."


@contextmanager
def explained() -> Iterator[None]:
    try:
        yield
    except gr.Error:
        raise
    except Exception as error:  # the page is to stand whatever happens
        if not isinstance(error, ValueError | OSError):
            log.exception("unforeseen")
        raise gr.Error(html.escape(sentence(error)), print_exception=False) from error


def in_words(handler: Handler) -> Handler:
    """A handler of events whose errors are said on the page; also one that yields."""
    if inspect.isgeneratorfunction(handler):

        @functools.wraps(handler)
        def streaming(*args: Any, **named: Any) -> Iterator[Any]:
            with explained():
                yield from handler(*args, **named)

        return streaming  # type: ignore[return-value]

    @functools.wraps(handler)
    def single(*args: Any, **named: Any) -> Any:
        with explained():
            return handler(*args, **named)

    return single  # type: ignore[return-value]


def line(text: str, kind: str = "said") -> str:
    """A sentence as HTML: ``kind`` is ``said`` or ``message``."""
    return f'<p class="{kind}">{html.escape(text)}</p>' if text else ""
