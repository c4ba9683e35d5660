"""Count the words of this run's input."""

import os


def do_action(engine, name):
    with open(name) as source:
        words = source.read().split()
    return {"words": words, "node": os.environ.get("AZ_BATCH_NODE_ID", "")}
