"""Run commands of the Azure CLI in one process of its own Python: a start of `az` takes seconds, a command does not.

One command a line comes in as a list of words in JSON; its exit code, output and error go out the same way.
"""

from __future__ import annotations

import importlib
import io
import json
import sys

# By its name: it is not installed where the types are checked.
get_default_cli = importlib.import_module("azure.cli.core").get_default_cli

for line in sys.stdin:
    cli, output = get_default_cli(), io.StringIO()
    try:
        code = cli.invoke(json.loads(line), out_file=output)
    except SystemExit as end:  # what argparse does
        code = end.code
    error = getattr(cli.result, "error", None) if hasattr(cli, "result") else None
    print(json.dumps([code, output.getvalue(), str(error or "")]), flush=True)
