"""Have a process end when the ssh session that it was started by does.

sshd leaves alone what it has started when the connection is gone, and so does pdsh. A rank would wait for others that
were never started, or go on with nobody to tell its end to.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from contextlib import suppress

import psutil

SESSION_VARIABLE = "ADAPONDER_ENDS_WITH_SSH_SESSION"
"""Set for processes that are to end so; whoever logs out after starting a training by hand does not mean to end it."""
_INIT = 1
_POLL_SECONDS = 2.0


class SshSession:
    """The session that this process is part of, watched from a thread; nothing where that is not asked for."""

    def __init__(self) -> None:
        self.last_words_seconds = 0.0
        """How long this process may go on after the session's end, which others may end of as well."""
        if not os.environ.get(SESSION_VARIABLE):
            return
        # sshd gives every command a session of its own (setsid): its leader is the command, whose parent is sshd.
        try:
            command = psutil.Process(os.getsid(0))
            daemon = command.ppid()
        except psutil.NoSuchProcess:  # ended before this process looked
            command, daemon = None, _INIT
        threading.Thread(target=self._watch, args=(command, daemon), name="ssh-session", daemon=True).start()

    def _watch(self, command: psutil.Process | None, daemon: int) -> None:
        with suppress(psutil.NoSuchProcess):
            # A process whose parent has ended gets another one.
            while command is not None and command.is_running() and command.ppid() == daemon != _INIT:
                time.sleep(_POLL_SECONDS)
        # Before anything is written: that may be to a network that is not there.
        end = threading.Timer(max(1.0, self.last_words_seconds), os._exit, (1,))
        end.daemon = True
        end.start()
        print("the ssh session that started this rank has ended, and so does the rank", file=sys.stderr, flush=True)
