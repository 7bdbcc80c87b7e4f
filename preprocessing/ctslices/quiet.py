"""Silence around libraries that would print what a header says."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_LIBRARIES = frozenset({"pydicom", "pylibjpeg", "openjpeg", "rle", "nibabel", "nrrd", "PIL"})


@contextmanager
def quiet() -> Iterator[None]:
    """Let no warning and no log line of the image libraries through while the block runs.

    Their texts quote header values (names, identifiers, paths), which must reach neither a terminal nor a log.
    """
    if logging.getLogger("pydicom").disabled:
        yield  # within another quiet block: nothing to do, and this runs for every file
        return
    loggers = [logging.getLogger(name) for name in _LIBRARIES]
    known = logging.root.manager.loggerDict
    loggers += [logging.getLogger(name) for name in list(known) if name.partition(".")[0] in _LIBRARIES]
    before = [(logger, logger.disabled) for logger in dict.fromkeys(loggers)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger, _ in before:
            logger.disabled = True
        try:
            yield
        finally:
            for logger, disabled in before:
                logger.disabled = disabled
