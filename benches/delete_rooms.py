"""`delete-rooms`: a plan for many rooms of the fake homeserver, and what another client of a real Synapse notices."""

import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor

from bench import UNLIMITED, Client, Fake, fact, figure, median, quoted, report_of, shown, write_config
from on_synapse import CLIENT, OtherClient, Synapse, python_with_synapse

JOB = '[jobs.rooms]\nkind = "delete-rooms"\nempty_for = "14d"\nmax_changes = "unlimited"\n'
HOUR_MS = 60 * 60 * 1000
MESSAGES = 10


def main(microglia, fake, small):
    plan(microglia, fake, *((400, 10) if small else (20_000, 500)))
    beside(microglia, *((4, 2) if small else (60, 20)))


def plan(microglia, fake, rooms, empty):
    homeserver = Fake(fake, rooms, "emptied", empty)
    config = write_config("rooms", homeserver.url, homeserver.token, JOB, UNLIMITED)
    try:
        report_of(microglia, config, "rooms", "--dry-run")
        seen_long_ago(config)
        homeserver.requests()
        report, took = report_of(microglia, config, "rooms", "--dry-run")
        assert report["planned"] == empty, report
        requests = homeserver.requests()
    finally:
        homeserver.stop()
    figure(f"{rooms:,} rooms of which {empty} are empty: requests of a plan", requests, empty + 100)
    figure("the same: time", took, 10, " s")


def beside(microglia, rooms, idle_seconds):
    """Rooms are shut down in one run, and purged in another one."""
    synapse = Synapse(60, 2)
    python = python_with_synapse()
    try:
        synapse.stop()
        synapse.start(python, synapse.home, days_ago=20)
        empty_rooms(synapse, rooms)
        synapse.stop()
        synapse.start(python, synapse.home)
        config = write_config("beside", synapse.url, synapse.token, JOB, UNLIMITED)
        report_of(microglia, config, "rooms", "--dry-run")
        seen_long_ago(config)
        other = OtherClient(synapse)
        other.latencies(lambda times=iter(range(5)): next(times, None) is None)
        found = {"idle": idle(other, idle_seconds)}
        for action in ("shut-down-room", "purge-room"):
            found[action] = during(other, microglia, config, rooms, action)
            shut_down_an_hour_ago(synapse, config)
        found["idle"] += idle(other, idle_seconds)
    finally:
        synapse.stop()
    for action in ("shut-down-room", "purge-room"):
        ratio = median(found[action]) / median(found["idle"])
        figure(f"another client during {action}: median latency against that of an idle Synapse", ratio, 1.2)
    for name, times in found.items():
        fact(f"{name}: median {median(times) * 1000:.1f} ms, {shown([max(times) * 1000])} ms at most, of {len(times)}")


def empty_rooms(synapse, count):
    admin = Client(synapse.url, synapse.token)
    for _ in range(count):
        room = quoted(admin.call("POST", f"{CLIENT}/createRoom", {"preset": "public_chat"})["room_id"])
        for number in range(MESSAGES):
            body = {"msgtype": "m.text", "body": "hello"}
            admin.call("PUT", f"{CLIENT}/rooms/{room}/send/m.room.message/{number}", body)
        admin.call("POST", f"{CLIENT}/rooms/{room}/leave", {})


def idle(other, seconds):
    end = time.monotonic() + seconds
    return other.latencies(lambda: time.monotonic() >= end)


def during(other, microglia, config, rooms, action):
    with ThreadPoolExecutor() as pool:
        run = pool.submit(report_of, microglia, config, "rooms", "--apply")
        found = other.latencies(run.done)
        report, took = run.result()
    assert report["done"] == rooms and report["changes"][0]["action"] == action, report
    fact(f"{action}: {rooms} rooms in {took:.1f} s")
    return found


def seen_long_ago(config):
    change(config.parent / "state" / "history.db", "UPDATE facts SET value = '1700000000000' WHERE topic = 'empty-room'")


def shut_down_an_hour_ago(synapse, config):
    """In the memory of the job and in that of Synapse."""
    at = "CAST(substr(value, 15) AS INTEGER)"
    change(
        config.parent / "state" / "history.db",
        f"UPDATE facts SET value = substr(value, 1, 14) || ({at} - {HOUR_MS}) WHERE topic = 'empty-room' AND length(value) > 14",
    )
    change(synapse.home / "homeserver.db", f"UPDATE scheduled_tasks SET timestamp = timestamp - {HOUR_MS}")


def change(database, statement):
    with sqlite3.connect(database, timeout=60) as connection:
        connection.execute(statement)
    connection.close()
