"""Find the longest word."""


def do_action(engine, found):
    return {"longest": max(found["words"], key=len), "count": len(found["words"]), "node": found["node"]}
