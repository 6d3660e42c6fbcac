"""The room in which microglia reports, and what a person does there.

usage: ops.py DIRECTORY create       a room of alice's, with microglia in it; prints its id
       ops.py DIRECTORY approve      waits for the message about a plan, prints it, and reacts to it as alice
       ops.py DIRECTORY answers N    waits for N more messages, and prints them
"""

import json
import pathlib
import sys
import time

from matrix import Homeserver, user_id

ADMIN = "/_synapse/admin"
CLIENT = "/_matrix/client/v3"


def messages(homeserver, room):
    """Returns the messages in the room, oldest first."""
    events = homeserver.get(f"{CLIENT}/rooms", room, "messages", dir="f", limit=100)["chunk"]
    return [event for event in events if event["type"] == "m.room.message"]


def wait_for(homeserver, room, count):
    give_up = time.monotonic() + 60
    while time.monotonic() < give_up:
        found = messages(homeserver, room)
        if len(found) >= count:
            return found
        time.sleep(0.5)
    sys.exit(f"fewer than {count} messages in the room after one minute")


def show(event):
    print("\n".join(f"  | {line}" for line in event["content"]["body"].splitlines()))


def main():
    home, command = pathlib.Path(sys.argv[1]), sys.argv[2]
    access = json.loads((home / "access.json").read_text())
    admin = Homeserver(access["url"], (home.parent / "token").read_text().strip())
    login = admin.post(f"{ADMIN}/v1/users", user_id("alice"), "login", body={})
    alice = admin.acting_as(login["access_token"])
    remembered = home / "ops-room"
    if command == "create":
        room = alice.post(
            f"{CLIENT}/createRoom",
            body={"preset": "private_chat", "name": "Operations", "invite": [user_id("microglia")]},
        )["room_id"]
        admin.post(f"{CLIENT}/join", room, body={})
        remembered.write_text(room)
        return print(room)
    room = remembered.read_text()
    if command == "approve":
        plan = wait_for(admin, room, 1)[0]
        show(plan)
        relation = {"rel_type": "m.annotation", "event_id": plan["event_id"], "key": "✅"}
        body = {"m.relates_to": relation}
        alice.put(f"{CLIENT}/rooms", room, "send", "m.reaction", "approval", body=body)
        return None
    for answer in wait_for(admin, room, 1 + int(sys.argv[3]))[1:]:
        show(answer)
    return None


main()
