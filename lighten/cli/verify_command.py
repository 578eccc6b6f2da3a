"""lighten verify DIR"""

import argparse
import json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The folder, and data when the original's is elsewhere now."""
    parser.add_argument("folder", metavar="DIR", help="a folder that lighten compress wrote")
    parser.add_argument("--data", metavar="D", help="as for compress (default: the source named in the report)")
    parser.add_argument("--threads", type=int, help="(default: as in the report)")


def run(arguments: argparse.Namespace) -> int:
    """Exit code 0 when every check holds, 3 when one fails."""
    from lighten.verify import verify

    found = verify(arguments.folder, data=arguments.data, threads=arguments.threads)
    if arguments.json:
        print(json.dumps(found, indent=2))
    else:
        print(
            "\n".join(
                f"{'ok    ' if check['ok'] else 'FAILED'}  {check['name']:10} {check['detail']}" for check in found["checks"]
            )
        )
    return 0 if found["ok"] else 3
