"""Reads a dashboard as Grafana's own types do, and says what they do not know or read otherwise.

usage: monitoring_schema.py FILE    with the interpreter of a venv that has grafana-foundation-sdk
"""

import json
import sys

from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard


def differences(written, read, path):
    match written, read:
        case dict(), dict():
            for key, value in written.items():
                # A null says nothing, so that it need not come back.
                if key in read:
                    yield from differences(value, read[key], f"{path}.{key}")
                elif value is not None:
                    yield f"{path}.{key}: Grafana knows no such key, or none with {json.dumps(value)}"
        case list(), list():
            if len(written) != len(read):
                yield f"{path}: {len(written)} entries, of which Grafana reads {len(read)}"
            for number, (one, other) in enumerate(zip(written, read)):
                yield from differences(one, other, f"{path}[{number}]")
        case _ if written != read:
            yield f"{path}: {json.dumps(written)} is {json.dumps(read)} to Grafana"


def main():
    register_default_plugins()
    with open(sys.argv[1]) as file:
        written = json.load(file)
    read = json.loads(json.dumps(Dashboard.from_json(written), cls=JSONEncoder))
    found = list(differences(written, read, "dashboard"))
    print("\n".join(found), file=sys.stderr)
    sys.exit(1 if found else 0)


main()
