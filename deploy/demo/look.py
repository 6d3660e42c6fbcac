"""Reads the state of Synapse directly, so that the demo does not rely on what microglia reports.

usage: look.py DIRECTORY remember           writes the current state to before.json
       look.py DIRECTORY unchanged          exit 1 and the differences if the state is not that of before.json
       look.py DIRECTORY cleaned            the same for the state that the jobs must have produced
       look.py DIRECTORY reports FILE       the same for what `microglia runs --json` claims
       look.py DIRECTORY joined USER ROOM   waits until USER is in ROOM
       look.py metrics URL WORD…            prints the metrics whose line contains a WORD
"""

import copy
import json
import pathlib
import sys
import time
import urllib.request

from matrix import Homeserver, user_id

ADMIN = "/_synapse/admin"
DAY = 24 * 60 * 60 * 1000
OLDER_THAN = 180 * DAY

# Avatars, former avatars, and the stickers that a job protects. Everything else follows from the files' timestamps.
STICKERS = {"sticker.png"}
KEPT = {"avatar.png", "former-avatar.png", *STICKERS}
NEW = [user_id("frank"), user_id("grace")]


def look(homeserver, rooms):
    """Returns everything that a job could have changed, in a fixed order."""
    users, files = {}, {}
    listed = homeserver.get(f"{ADMIN}/v3/users", guests="false", locked="true", limit=1000)["users"]
    for name in sorted(user["name"] for user in listed):
        user = homeserver.get(f"{ADMIN}/v2/users", name)
        keep = ("admin", "deactivated", "locked", "user_type", "displayname", "avatar_url")
        users[name] = {key: user[key] for key in keep}
        users[name]["external_ids"] = sorted(
            [known["auth_provider"], known["external_id"]] for known in user["external_ids"]
        )
        for file in homeserver.get(f"{ADMIN}/v1/users", name, "media", limit=1000)["media"]:
            files[file["media_id"]] = {
                "owner": name,
                "name": file["upload_name"],
                "bytes": file["media_length"],
                "last_used": file["last_access_ts"] or file["created_ts"],
                "withheld": bool(file["quarantined_by"] or file["safe_from_quarantine"]),
            }
    members = {}
    for alias, room in rooms.items():
        state = homeserver.get(f"{ADMIN}/v1/rooms", room, "state")["state"]
        members[alias] = {
            event["state_key"]: {"event": event["event_id"], **event["content"]}
            for event in sorted(state, key=lambda event: event["state_key"])
            if event["type"] == "m.room.member"
        }
    return {"files": files, "members": members, "users": users}


def is_old(file):
    return file["last_used"] < time.time() * 1000 - OLDER_THAN


def may_go(file):
    return is_old(file) and not file["withheld"] and file["name"] not in KEPT


def is_to_be_removed(user, external_id):
    return user["deactivated"] and external_id[0] == "oidc-google"


def cleaned(before):
    """Returns the state that the jobs must produce from `before`."""
    after = copy.deepcopy(before)
    after["files"] = {name: file for name, file in after["files"].items() if not may_go(file)}
    for file in after["files"].values():
        file["withheld"] |= file["name"] in STICKERS
    for people in after["members"].values():
        for name in NEW:
            people[name] = {"membership": "join"}
    for user in after["users"].values():
        user["external_ids"] = [it for it in user["external_ids"] if not is_to_be_removed(user, it)]
    return after


def without_news(now):
    """Returns `now` with only the membership of new members: the rest of their events is written by Synapse."""
    now = copy.deepcopy(now)
    for people in now["members"].values():
        for name in NEW:
            if name in people:
                people[name] = {"membership": people[name]["membership"]}
    return now


def differences(expected, now, path=""):
    if isinstance(expected, dict) and isinstance(now, dict):
        for key in sorted(expected.keys() | now.keys()):
            yield from differences(expected.get(key), now.get(key), f"{path} {key}")
    elif expected != now:
        yield f"{path.strip()}: expected {say(expected)}, found {say(now)}"


def say(value):
    return "nothing" if value is None else json.dumps(value, ensure_ascii=False)


def figures(seen):
    files, users = seen["files"].values(), seen["users"].values()
    held = [(user, external_id) for user in users for external_id in user["external_ids"]]
    joined = {
        alias: sum(member["membership"] == "join" for member in people.values())
        for alias, people in seen["members"].items()
    }
    to_remove = sum(is_to_be_removed(*one) for one in held)
    old = [file for file in files if may_go(file)]
    return {
        "files unused for 180 days (no avatars, stickers, protected)": len(old),
        "all other files": len(files) - len(old),
        "bytes of all files": sum(file["bytes"] for file in files),
        **{f"members of {alias}": count for alias, count in joined.items()},
        "oidc-google ids of deactivated accounts": to_remove,
        "all other external ids": len(held) - to_remove,
    }


def compare(before, expected, now):
    columns = [figures(it) for it in (before, expected, now)]
    print(f"  {'':<61}{'before':>10}{'expected':>10}{'now':>10}")
    for name in columns[0]:
        print(f"  {name:<61}" + "".join(f"{column[name]:>10}" for column in columns))
    found = list(differences(expected, now))
    for line in found:
        print(f"  differs: {line}", file=sys.stderr)
    sys.exit(1 if found else 0)


def reports(before, runs):
    """Compares the runs that microglia recorded with what had to change."""
    gone = [file for file in before["files"].values() if may_go(file)]
    held = [(user, it) for user in before["users"].values() for it in user["external_ids"]]
    expected = {
        "purge-local-media": len(gone),
        "join-rooms": len(NEW) * len(before["members"]),
        "remove-external-ids": sum(is_to_be_removed(*one) for one in held),
        "protect-media": sum(file["name"] in STICKERS for file in before["files"].values()),
        # Its room was emptied just now.
        "delete-rooms": 0,
    }
    wrong, modes = [], []
    for run in runs:
        where = f"run {run['id']} of {run['job']} ({run['mode']})"
        done = expected[run["kind"]] if run["mode"] == "apply" else 0
        modes.append((run["kind"], run["mode"]))
        for key, value in {"outcome": "succeeded", "done": done, "failed": 0, "remaining": 0}.items():
            if run[key] != value:
                wrong.append(f"{where}: {key}: expected {say(value)}, recorded {say(run[key])}")
        freed = sum(file["bytes"] for file in gone)
        if (run["kind"], run["mode"]) == ("purge-local-media", "apply") and run["bytes_freed"] != freed:
            wrong.append(f"{where}: bytes_freed: expected {freed}, recorded {say(run['bytes_freed'])}")
    due = [(kind, mode) for kind in expected for mode in ("apply", "dry-run")]
    due.remove(("delete-rooms", "apply"))
    if sorted(modes) != sorted(due):
        wrong.append(f"expected one dry run of each kind and one real run of all but delete-rooms, recorded {modes}")
    for line in wrong:
        print(f"  differs: {line}", file=sys.stderr)
    sys.exit(1 if wrong else 0)


def wait_until_joined(homeserver, room, who):
    give_up = time.monotonic() + 60
    while time.monotonic() < give_up:
        if who in homeserver.get(f"{ADMIN}/v1/rooms", room, "members")["members"]:
            return
        time.sleep(0.5)
    sys.exit(f"{who} is not in {room} after one minute")


def metrics(url, words):
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"{url}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    shown = [line for line in lines if not line.startswith("#") and any(word in line for word in words)]
    if not shown:
        sys.exit(f"no metric contains any of {', '.join(words)}")
    print("\n".join(shown))


def main():
    place, command, *arguments = sys.argv[1:]
    if place == "metrics":
        return metrics(command, arguments)
    home = pathlib.Path(place)
    access = json.loads((home / "access.json").read_text())
    homeserver = Homeserver(access["url"], (home.parent / "token").read_text().strip())
    rooms = json.loads((home / "rooms.json").read_text())
    remembered = home / "before.json"
    if command == "joined":
        who, alias = arguments
        return wait_until_joined(homeserver, rooms[alias], user_id(who))
    if command == "remember":
        return remembered.write_text(json.dumps(look(homeserver, rooms)))
    before = json.loads(remembered.read_text())
    if command == "unchanged":
        return compare(before, before, look(homeserver, rooms))
    if command == "cleaned":
        return compare(before, cleaned(before), without_news(look(homeserver, rooms)))
    if command == "reports":
        return reports(before, json.loads(pathlib.Path(arguments[0]).read_text()))
    sys.exit(__doc__)


main()
