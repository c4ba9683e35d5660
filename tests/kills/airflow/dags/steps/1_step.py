"""The step that is killed around: it notes that it ran, waits for leave to end, and returns what it noted."""

import json
import time
import uuid
from pathlib import Path
from typing import Any


def do_action(engine: Any, folder: str) -> dict[str, Any]:
    """Note, wait, return."""
    attempt, token = engine.context["attempt"], uuid.uuid4().hex
    with (Path(folder) / "bodies").open("a") as file:
        file.write(json.dumps({"attempt": attempt, "token": token, "try": engine.context["try_number"]}) + "\n")
    deadline = time.monotonic() + 300
    while not (Path(folder) / "go").exists():
        assert time.monotonic() < deadline, "nobody let the step go on"
        time.sleep(0.05)
    if engine.params["fails"] and attempt == 1:
        raise ValueError("the first attempt fails")
    return {"attempt": attempt, "token": token}
