"""Run the jar as the engine's user would run any program, and pick the figure from what it printed."""


def do_action(engine, points, seed):
    lines = engine.java_runner("pi.jar", points, seed)
    print("\n".join(lines))
    return {"points": int(points), "pi": float(lines[1].split()[1])}
