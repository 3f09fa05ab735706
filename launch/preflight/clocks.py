"""Do the nodes' clocks agree? Logs are put in order by them, and files of one node are dated on another."""

from __future__ import annotations

import time
from collections.abc import Sequence

from launch.preflight.check import Check, Context, Finding, Told, first_of_nodes

_ROUNDS = 5


def look(context: Context) -> float:
    """Seconds that this clock is ahead of rank 0's, from the round in which the message travelled fastest."""
    meeting, found = context.meeting, []
    for number in range(_ROUNDS):
        asked = time.time()
        # Rank 0 notes the time once every rank is here, so that nobody's waiting counts as travelling.
        meeting.tell(f"clocks/{number}", None)
        theirs = meeting.from_rank_0(f"clocks/{number}/time", time.time())
        now = time.time()
        found.append((now - asked, now - theirs))
    return min(found)[1]


def judge(context: Context, told: Sequence[Told]) -> list[Finding]:
    nodes = first_of_nodes(told)
    allowed = context.settings.clock_seconds
    ahead = {node.place.host: node.seen for node in nodes}
    findings = [
        Finding(
            "failed",
            f"the clock of {host} is {abs(seconds):.1f} s {'ahead of' if seconds > 0 else 'behind'} that of "
            f"{nodes[0].place.host}: set it by NTP (chronyc tracking)",
            {"seconds": seconds},
        )
        for host, seconds in ahead.items()
        if abs(seconds) > allowed
    ]
    if findings:
        return findings
    widest = max(map(abs, ahead.values()))
    return [Finding("ok", f"at most {widest:.3f} s apart", {"seconds_ahead": ahead})]


CHECK = Check("clocks", look, judge)
