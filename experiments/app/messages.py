"""Shows errors as one-line messages on the page. Unexpected errors are also logged on the server."""

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


def error_message(error: BaseException) -> str:
    """Return the message for an exception in one line.

    For ValueError and OSError, the result is the message of the exception. For any other exception, the result contains
    only the type of the exception.
    """
    if isinstance(error, ValueError | OSError):
        return " ".join(str(error).split()) or type(error).__name__
    return f"Internal error on the server ({type(error).__name__}); see the terminal for details."


@contextmanager
def error_context() -> Iterator[None]:
    """Context manager that converts every exception to ``gr.Error``, which the page displays."""
    try:
        yield
    except gr.Error:
        raise
    except Exception as error:  # an error in an event handler must not break the page
        if not isinstance(error, ValueError | OSError):
            log.exception("unexpected error in an event handler")
        raise gr.Error(html.escape(error_message(error)), print_exception=False) from error


def catch_errors(handler: Handler) -> Handler:
    """Decorate an event handler so that the page displays its exceptions.

    The handler may be a function or a generator.
    """
    if inspect.isgeneratorfunction(handler):

        @functools.wraps(handler)
        def generator(*args: Any, **kwargs: Any) -> Iterator[Any]:
            with error_context():
                yield from handler(*args, **kwargs)

        return generator  # type: ignore[return-value]

    @functools.wraps(handler)
    def function(*args: Any, **kwargs: Any) -> Any:
        with error_context():
            return handler(*args, **kwargs)

    return function  # type: ignore[return-value]


def report_errors(handler: Callable[..., dict], message: gr.HTML) -> Callable[..., dict]:
    """Decorate an event handler that returns a dict of updates, so that ``message`` shows the errors of the handler.

    An error changes no other component. The next event without an error clears ``message``. ``message`` must be one of
    the outputs of the event.
    """

    @functools.wraps(handler)
    def function(*args: Any, **kwargs: Any) -> dict:
        try:
            return {message: ""} | handler(*args, **kwargs)
        except Exception as error:  # an error in an event handler must not break the page
            if not isinstance(error, ValueError | OSError):
                log.exception("unexpected error in an event handler")
            return {message: status_html(error_message(error), "error")}

    return function


def status_html(text: str, kind: str = "status") -> str:
    """Return a line of text as an HTML paragraph.

    ``kind`` is the CSS class of the paragraph: ``status`` or ``error``.
    """
    return f'<p class="{kind}">{html.escape(text)}</p>' if text else ""
