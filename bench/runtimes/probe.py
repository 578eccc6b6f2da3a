"""Asks every runtime that is installed what it executes, and keeps it for plans: writes lighten/export/executed.json.

    python bench/runtimes/probe.py [RUNTIME ...]

For each runtime one to five minutes; the others' entries stay. `lighten targets` shows the file.
"""

import json
import sys
from pathlib import Path

from lighten import catalog
from lighten.engine.files import write_atomic
from lighten.export import executed
from lighten.targets import probe, table, targets, version

PATH = Path(executed.__file__).with_name(executed.FILE)


def main() -> None:
    """Asks those that are named, else all that are installed."""
    known = json.loads(PATH.read_text())
    for name in sys.argv[1:] or [name for name in catalog.names("exporters") if version(name) is not None]:
        known[name] = probe(name)
        write_atomic(PATH, json.dumps(known, indent=1, sort_keys=True) + "\n")
    print(table(targets()))


if __name__ == "__main__":
    main()
