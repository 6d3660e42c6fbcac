"""Deleting files one by one on a real Synapse, compared with a bare loop of DELETEs with as many connections."""

import http.client
import sqlite3
import time
import urllib.parse

from bench import UNLIMITED, fact, figure, median, report_of, shown, side_by_side, write_config
from on_synapse import ADMIN, SERVER_NAME, Synapse, user_id

CONNECTIONS = 4
# 2022-01-01, long before any cut-off.
UPLOADED = 1_640_995_200_000


def main(microglia, _fake, small):
    files, repeats = (500, 1) if small else (10_000, 5)
    synapse = Synapse(60, 2)
    job = (
        '[jobs.files]\nkind = "purge-local-media"\nolder_than = "180d"\nmedia_types = ["image/*"]\n'
        'max_changes = "unlimited"\n'
    )
    config = write_config("exact", synapse.url, synapse.token, job, UNLIMITED)
    try:
        ours, bare = [], []
        for turn in range(repeats):
            # The machine gets slower and faster: each is first in turn.
            for is_ours in (True, False) if turn % 2 == 0 else (False, True):
                ids = upload(synapse, files)
                if is_ours:
                    report, took = report_of(microglia, config, "files", "--apply")
                    assert report["done"] == files, report
                    ours.append(files / took)
                else:
                    bare.append(files / delete(synapse, ids))
    finally:
        synapse.stop()
    ratio = median([our / one for our, one in zip(ours, bare)])
    figure("files deleted one by one, rate of the whole command against a bare loop's", ratio, 0.9, worst=min)
    fact(f"files a second: microglia {shown(ours)}; bare {shown(bare)}")


def upload(synapse, count):
    """Makes as many files of 2 kB as Synapse would, and returns their ids."""
    ids = [f"{number:024}" for number in range(count)]
    for media_id in ids:
        path = synapse.home / "media" / "local_content" / media_id[:2] / media_id[2:4] / media_id[4:]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * 2000)
    rows = [(media_id, "image/png", UPLOADED + number, 2000, user_id(number % 10)) for number, media_id in enumerate(ids)]
    with sqlite3.connect(synapse.home / "homeserver.db", timeout=60) as database:
        database.executemany(
            "INSERT INTO local_media_repository (media_id, media_type, created_ts, media_length, user_id)"
            " VALUES (?, ?, ?, ?, ?)",
            rows,
        )
    return ids


def delete(synapse, ids):
    """Deletes the files over kept connections, and returns how many seconds that took."""
    address = urllib.parse.urlsplit(synapse.url).netloc
    headers = {"Authorization": f"Bearer {synapse.token}"}

    def share(some):
        connection = http.client.HTTPConnection(address)
        for media_id in some:
            connection.request("DELETE", f"{ADMIN}/v1/media/{SERVER_NAME}/{media_id}", headers=headers)
            response = connection.getresponse()
            body = response.read()
            assert response.status == 200 and b'"total":1' in body, body

    start = time.monotonic()
    side_by_side(CONNECTIONS, ids, share)
    return time.monotonic() - start
