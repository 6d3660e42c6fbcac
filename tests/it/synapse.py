"""Runs one process of a Synapse for a test: says its port, and ends when the test does.

Usage: python -I synapse.py APP --config-path FILE..., in the homeserver's own directory; APP is
"homeserver", or a worker's "generic_worker" or "media_repository". The port is written to stdout.
A line "stop" on stdin stops Synapse in good order; the end of stdin means that the test process is
gone, however it died, so the process exits and takes the directory with it.
A file "days-ago" in the directory sets its clock back by that many days.
"""

import importlib
import os
import shutil
import sys
import threading
import time


def obey_stdin() -> None:
    # Later another process of the same homeserver may have taken it away.
    directory = os.getcwd()
    stopping = False
    while order := os.read(0, 64):
        stopping = order == b"stop\n"
        if stopping:
            from twisted.internet import reactor

            reactor.callFromThread(reactor.stop)
    if not stopping:
        shutil.rmtree(directory, ignore_errors=True)
    os._exit(1)


# Before the imports, which take a second in which the test can die.
threading.Thread(target=obey_stdin, daemon=True).start()

if os.path.exists("days-ago"):
    with open("days-ago") as file:
        seconds_ago = float(file.read()) * 86400
    real_time = time.time
    time.time = lambda: real_time() - seconds_ago

from synapse.app import _base  # noqa: E402
from synapse.module_api import DirectServeJsonResource, ModuleApi  # noqa: E402
from synapse.storage.engines.sqlite import Sqlite3Engine  # noqa: E402

listen_tcp = _base.listen_tcp
on_new_connection = Sqlite3Engine.on_new_connection


class Logins(DirectServeJsonResource):
    """A module of Synapse: whom this very process would log in.

    GET /_test/logins?provider=P&id=ID&id=ID... answers with the account that has each external id,
    taken from the store, and so from its cache, as an SSO login takes it.
    """

    def __init__(self, config: dict, api: ModuleApi):
        super().__init__()
        self.store = api._store
        api.register_web_resource("/_test/logins", self)

    async def _async_render_GET(self, request) -> tuple[int, dict]:
        provider = request.args[b"provider"][0].decode()
        ids = [external_id.decode() for external_id in request.args.get(b"id", [])]
        return 200, {i: await self.store.get_user_by_external_id(provider, i) for i in ids}


def listen_and_tell(*args, **kwargs):
    ports = listen_tcp(*args, **kwargs)
    # Not `print`: Synapse has redirected it to its log by now.
    os.write(1, b"%d\n" % ports[0].getHost().port)
    return ports


def on_new_connection_without_fsync(self, db_conn) -> None:
    on_new_connection(self, db_conn)
    # A test's database need not survive a power cut.
    db_conn.execute("PRAGMA synchronous = OFF;")


_base.listen_tcp = listen_and_tell
Sqlite3Engine.on_new_connection = on_new_connection_without_fsync
importlib.import_module(f"synapse.app.{sys.argv.pop(1)}").main()
