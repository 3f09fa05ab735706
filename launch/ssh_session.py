"""Have a process end when the ssh session that it was started by does.

sshd leaves alone what it has started when the connection is gone, and so does pdsh. A rank would wait for others that
were never started, or go on with nobody to tell its end to.
"""

from __future__ import annotations

import os
import sys
import threading
import time

import psutil

SESSION_VARIABLE = "ADAPONDER_ENDS_WITH_SSH_SESSION"
"""Set for processes that are to end so; whoever logs out after starting a training by hand does not mean to end it."""
_POLL_SECONDS = 2.0
_ENDS_BY_ITSELF_SECONDS = 20.0
"""For a rank that is already ending, and has its last words to say."""


def end_with_ssh_session() -> None:
    """Watch the sshd that this process descends from, from a thread; nothing where none is, or where it is not asked
    for."""
    if not os.environ.get(SESSION_VARIABLE):
        return
    for ancestor in psutil.Process().parents():
        if ancestor.name().startswith("sshd"):
            threading.Thread(target=_end_after, args=(ancestor,), name="ssh-session", daemon=True).start()
            return


def _end_after(session: psutil.Process) -> None:
    while session.is_running() and session.status() != psutil.STATUS_ZOMBIE:
        time.sleep(_POLL_SECONDS)
    # Before anything is written: that may be to a network that is not there.
    end = threading.Timer(_ENDS_BY_ITSELF_SECONDS, os._exit, (1,))
    end.daemon = True
    end.start()
    print("the ssh session that started this rank has ended, and so does the rank", file=sys.stderr, flush=True)
