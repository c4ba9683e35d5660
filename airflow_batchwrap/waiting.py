"""How often to look: shared by the blocking wait and the triggers."""

from __future__ import annotations

import random

_FIRST = 0.2  # seconds: short steps are over soon
_SHARE = 0.05  # of the time waited so far: what took a minute is looked at every 3 s, and its end seen 1.5 s late
GRACE = 5.0  # seconds a Batch task may wait before one asks what keeps it
STUCK_INTERVAL = 15.0  # seconds between two such questions
TRIGGER_PADDING = 120.0  # seconds: the framework's timeout comes this much later, so that the trigger's own wins


def pause_after(waited: float, longest: float, share: float = _SHARE) -> float:
    """Return how many seconds to pause before the next look.

    :param waited: seconds since the wait began.
    :param longest: the longest pause, in seconds; a tenth of it either way is jitter, so that many waits spread out.
    :param share: of the time waited so far.
    """
    pause = min(max(_FIRST, waited * share), longest)
    return pause * random.uniform(0.9, 1.1)  # noqa: S311 - no secret depends on it
