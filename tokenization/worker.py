"""What runs in a worker: it is told what to do over a pipe, and tells how far it is."""

from __future__ import annotations

import os
import traceback
from contextlib import suppress
from multiprocessing.connection import Connection

from launch.local import die_with_parent
from pipeline.console import console
from pipeline.errors import AdaPonderError, UserError
from tokenization.job import Setting, do_job
from tokenization.part import EncodingDiffers, Tools


class _ParentGoneError(Exception):
    """Nobody reads the pipe any more."""


class _Reports:
    """Tells the parent."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def advance(self, text_bytes: int) -> None:
        self.send("advance", text_bytes)

    def count(self, text_bytes: int, tokens: int) -> None:
        self.send("count", (text_bytes, tokens))

    def send(self, kind: str, content: object) -> None:
        try:
            self._connection.send((kind, content))
        except OSError as error:
            raise _ParentGoneError from error


def work(connection: Connection, parent: int) -> None:
    """The life of a worker: a setting, then jobs, until the pipe closes. `parent` is the process that started it."""
    die_with_parent()
    if os.getppid() != parent:  # it ended before we asked
        return
    console.quiet = True  # the parent has said the same
    tools: Tools | None = None
    setting: Setting | None = None
    while True:
        try:
            job = connection.recv()
        except (EOFError, OSError):  # the parent needs no more
            # All files are closed; taking the words that were learnt apart, one by one, would be waited for.
            os._exit(0)
        if isinstance(job, Setting):
            setting = job
            continue
        assert setting is not None
        reports = _Reports(connection)
        try:
            if tools is None:
                tools = setting.open()
                for note in tools.notes:
                    reports.send("note", note)
            do_job(setting, tools, job, reports)
            reports.send("done", None)
        except _ParentGoneError:
            return
        except EncodingDiffers as error:
            failure = "differs", str(error)
        except AdaPonderError as error:
            failure = "user" if isinstance(error, UserError) else "world", str(error)
        except OSError as error:
            failure = "world", f"{error.filename or job.part}: {error.strerror or error}"
        except BaseException:
            failure = "bug", traceback.format_exc()
        else:
            continue
        with suppress(_ParentGoneError):
            reports.send("failed", failure)
        return
