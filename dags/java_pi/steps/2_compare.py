"""Compare the estimate with the real thing."""

import math


def do_action(engine, estimate):
    return {**estimate, "error": abs(math.pi - estimate["pi"])}
