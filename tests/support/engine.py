"""A stand-in for a container engine: it knows the few commands that the service uses, and runs this machine's programs.

folder = engine.make(tmp_path / "engine")  # holds `docker`, what it was `asked`, and its `containers`
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

ENGINE = """
import hashlib, json, os, signal, subprocess, sys, time
from pathlib import Path
here, (verb, *rest) = Path(__file__).parent, sys.argv[1:]
state, images = here / "containers", here / "images"
state.mkdir(exist_ok=True)
images.mkdir(exist_ok=True)
with (here / "asked").open("a") as log:
    log.write(json.dumps([verb, *rest, {name: os.environ[name] for name in STEERING if name in os.environ}]) + "\\n")
if (here / "silent").exists() and (here / "silent").read_text() == "for good":
    time.sleep(30)
while (here / "silent").exists():
    time.sleep(0.05)
if verb == "version":
    print("stand-in")
elif verb == "image":
    sys.exit(0 if rest[-1] in ("image", "late") or (images / rest[-1]).exists() else "no such image")
elif verb == "pull":
    if rest[-1].startswith("slow"):
        (here / "pulling").write_text(str(os.getpid()))
        with (here / "fetching").open("a") as log:
            log.write(f"{os.getpid()}\\n")
        time.sleep(30)
    if rest[-1] == "missing":
        sys.exit("pull access denied for missing")
    (images / rest[-1]).touch()
elif verb == "create":
    found, env = {}, {}
    while rest[0] != "--":
        option, _, value = rest.pop(0).partition("=")
        if option == "--wrong":
            print("unknown flag: --wrong", file=sys.stderr)
            sys.exit(125)
        if option not in ("--pull", "--http-proxy", "--rm"):
            value = rest.pop(0)
        if option == "--env":
            env[value] = os.environ[value]
        if option == "--env-file":
            env |= dict(line.split("=", 1) for line in Path(value).read_text().splitlines())
        found.setdefault(option, []).append(value)
    image, *command = rest[1:]
    if image == "late":
        (here / "creating").touch()
        time.sleep(1)
    name = hashlib.sha256(os.urandom(8)).hexdigest()
    text = json.dumps({"options": found, "env": env, "command": command or ["/bin/echo", "of the image"]})
    (state / name).write_text(text)
    print(name)
elif verb == "start":
    made = json.loads((state / rest[-1]).read_text())
    env = {"PATH": "/in/the/container:/usr/bin:/bin", **made["env"]}
    working = made["options"].get("--workdir", ["/"])[0]
    if not os.path.exists(made["command"][0]):
        (state / (rest[-1] + ".error")).write_text('exec: "x": executable file not found in $PATH')
        sys.exit(1)
    child = subprocess.Popen(made["command"], cwd=working, env=env, start_new_session=True)
    (state / f"{rest[-1]}.pid").write_text(str(child.pid))
    sys.exit(child.wait())
elif verb == "inspect":
    if not (state / rest[-1]).exists():
        sys.exit("no such container")
    error = state / (rest[-1] + ".error")
    text = error.read_text() if error.exists() else ""
    print(json.dumps({"Status": "created" if text else "exited", "Error": text}))
elif verb == "ps":
    label = rest[-1].partition("=")[2]
    for each in state.iterdir():
        if "." not in each.name and label in json.loads(each.read_text())["options"]["--label"]:
            print(each.name)
elif verb == "rm":
    for each in rest:
        pid = state / f"{each}.pid"
        if pid.exists():
            try:
                os.killpg(int(pid.read_text()), signal.SIGKILL)
            except ProcessLookupError:
                pass
            pid.unlink()
        (state / f"{each}.error").unlink(missing_ok=True)
        (state / each).unlink(missing_ok=True)
"""
#: Variables that steer the command lines of engines.
STEERING = ("DOCKER_HOST", "DOCKER_CONFIG", "CONTAINER_HOST", "XDG_RUNTIME_DIR", "TMPDIR", "HTTPS_PROXY", "LD_PRELOAD")


def make(folder: Path) -> Path:
    """Make the engine.

    :param folder: a folder that is there; it comes to stand on the service's PATH.
    """
    (folder / "engine.py").write_text(f"STEERING = {STEERING!r}\n{ENGINE}")
    # No path of an interpreter after #!: it ends at a space, and after 127 characters.
    command = shlex.join([sys.executable, str(folder / "engine.py")])
    (folder / "docker").write_text(f'#!/bin/sh\nexec {command} "$@"\n')
    (folder / "docker").chmod(0o755)
    return folder
