"""Fills the demo's homeserver with users, rooms, files and external ids.

usage: seed.py DIRECTORY              everything, and the file `token` for microglia
       seed.py DIRECTORY NEWCOMER     one more account
"""

import hashlib
import hmac
import json
import os
import pathlib
import secrets
import sqlite3
import sys
import time

from matrix import SERVER_NAME, Homeserver, user_id

ADMIN = "/_synapse/admin"
CLIENT = "/_matrix/client/v3"
KIB = 1024

PEOPLE = {
    "alice": "owns both rooms",
    "bob": "has another name in the lobby",
    "carol": "left the lobby of her own accord",
    "dave": "was kicked from both rooms",
    "erin": "was banned from both rooms",
    "frank": "is in no room yet",
    "grace": "is in no room yet",
    "heidi": "deactivated",
    "ivan": "locked",
    "judy": "deactivated",
}

# The provider oidc-google was replaced by saml.
EXTERNAL_IDS = {
    "alice": ["oidc-google", "saml"],
    "bob": ["oidc-google"],
    "carol": ["saml"],
    "heidi": ["oidc-google", "saml"],
    "ivan": ["oidc-google"],
    "judy": ["oidc-google"],
}

# owner, name, how many, bytes each, uploaded days ago, last read days ago (None: never)
FILES = [
    ("alice", "holiday.jpg", 6, 400 * KIB, 420, None),
    ("bob", "scan.pdf", 4, 300 * KIB, 300, 200),
    ("heidi", "handover.odt", 2, 80 * KIB, 500, None),
    ("_bridge_zoe", "bridged.png", 2, 50 * KIB, 365, None),
    # None of the following may be deleted.
    ("carol", "minutes.odt", 4, 60 * KIB, 400, 10),
    ("dave", "draft.odt", 5, 100 * KIB, 170, None),
    ("frank", "today.png", 3, 100 * KIB, 0, None),
    ("alice", "avatar.png", 1, 20 * KIB, 700, None),
    ("bob", "former-avatar.png", 1, 20 * KIB, 700, None),
    ("bob", "avatar.png", 1, 20 * KIB, 1, None),
    ("erin", "quarantined.bin", 1, 500 * KIB, 400, None),
    ("grace", "protected-sticker.png", 1, 30 * KIB, 400, None),
    # Of the lobby's image pack: a purge deletes them, unless they are protected.
    ("alice", "sticker.png", 2, 30 * KIB, 400, None),
]


def register_microglia(homeserver, shared_secret):
    """Registers the account that microglia uses: a server admin, and a bot, which is not asked for consent."""
    nonce = homeserver.get(f"{ADMIN}/v1/register")["nonce"]
    account = {
        "nonce": nonce,
        "username": "microglia",
        "password": secrets.token_hex(),
        "admin": True,
        "user_type": "bot",
    }
    fields = [nonce, account["username"], account["password"], "admin", account["user_type"]]
    mac = hmac.new(shared_secret.encode(), "\0".join(fields).encode(), hashlib.sha1)
    answer = homeserver.post(f"{ADMIN}/v1/register", body={**account, "mac": mac.hexdigest()})
    return answer["access_token"]


class Seed:
    def __init__(self, home):
        access = json.loads((home / "access.json").read_text())
        self.database = home / "homeserver.db"
        anyone = Homeserver(access["url"])
        self.token = register_microglia(anyone, access["shared_secret"])
        self.admin = anyone.acting_as(self.token)
        self.bridge = anyone.acting_as(access["bridge_token"])
        self.people = {}

    def accounts(self):
        for name in PEOPLE:
            external_ids = [
                {"auth_provider": provider, "external_id": f"{provider}-{name}"}
                for provider in EXTERNAL_IDS.get(name, [])
            ]
            body = {"displayname": name.title(), "external_ids": external_ids}
            self.admin.put(f"{ADMIN}/v2/users", user_id(name), body=body)
            login = self.admin.post(f"{ADMIN}/v1/users", user_id(name), "login", body={})
            self.people[name] = self.admin.acting_as(login["access_token"])
        ghost = {"type": "m.login.application_service", "username": "_bridge_zoe", "inhibit_login": True}
        self.bridge.post(f"{CLIENT}/register", body=ghost)

    def rooms(self):
        alice = self.people["alice"]
        lobby = alice.post(
            f"{CLIENT}/createRoom",
            body={"preset": "public_chat", "room_alias_name": "lobby", "name": "Lobby", "room_version": "11"},
        )["room_id"]
        levels = {"invite": 50, "users": {user_id("alice"): 100, user_id("microglia"): 50}}
        staff = alice.post(
            f"{CLIENT}/createRoom",
            body={
                "preset": "private_chat",
                "room_alias_name": "staff",
                "name": "Staff",
                "room_version": "11",
                "power_level_content_override": levels,
                "invite": [user_id(name) for name in ("microglia", "bob", "carol", "dave", "erin")],
            },
        )["room_id"]
        self.admin.post(f"{CLIENT}/join", staff, body={})
        for room in (lobby, staff):
            for name in ("bob", "carol", "dave", "erin"):
                self.people[name].post(f"{CLIENT}/join", room, body={})
            alice.post(f"{CLIENT}/rooms", room, "kick", body={"user_id": user_id("dave")})
            alice.post(f"{CLIENT}/rooms", room, "ban", body={"user_id": user_id("erin")})
        self.people["carol"].post(f"{CLIENT}/rooms", lobby, "leave", body={})
        attic = self.people["dave"].post(f"{CLIENT}/createRoom", body={"name": "Attic", "room_version": "11"})
        self.people["dave"].post(f"{CLIENT}/rooms", attic["room_id"], "leave", body={})
        return {"#lobby": lobby, "#staff": staff}

    def files(self):
        """Uploads every file; see let_years_pass for their age."""
        ids = {}
        for owner, name, count, size, *_ in FILES:
            for _ in range(count):
                who, query = self.people.get(owner), {"filename": name}
                if who is None:
                    who, query["user_id"] = self.bridge, user_id(owner)
                answer = who.post("/_matrix/media/v3/upload", body=os.urandom(size), **query)
                media_id = answer["content_uri"].rsplit("/", 1)[1]
                ids.setdefault((owner, name), []).append(media_id)
        quarantined, protected = ids["erin", "quarantined.bin"][0], ids["grace", "protected-sticker.png"][0]
        self.admin.post(f"{ADMIN}/v1/media/quarantine", SERVER_NAME, quarantined, body={})
        self.admin.post(f"{ADMIN}/v1/media/protect", protected, body={})
        return ids

    def stickers(self, rooms, ids):
        uris = [f"mxc://{SERVER_NAME}/{media_id}" for media_id in ids["alice", "sticker.png"]]
        images = dict(zip(("wave", "thanks"), ({"url": uri} for uri in uris)))
        pack = {"images": images, "pack": {"display_name": "Greetings"}}
        self.people["alice"].put(f"{CLIENT}/rooms", rooms["#lobby"], "state", "im.ponies.room_emotes", "greetings", body=pack)

    def profiles(self, rooms, ids):
        self.wear("alice", ids["alice", "avatar.png"][0], rooms["#lobby"])
        # Synapse keeps former avatars, but its Admin API does not mark them.
        self.wear("bob", ids["bob", "former-avatar.png"][0], rooms["#lobby"])
        self.wear("bob", ids["bob", "avatar.png"][0], rooms["#lobby"])
        self.wear("bob", ids["bob", "avatar.png"][0], rooms["#staff"])
        nickname = {"membership": "join", "displayname": "Bob (on call)"}
        bob = self.people["bob"]
        bob.put(f"{CLIENT}/rooms", rooms["#lobby"], "state", "m.room.member", user_id("bob"), body=nickname)

    def wear(self, name, media_id, room):
        """Sets an avatar and waits until `room` shows it: Synapse updates rooms in the background."""
        uri, person = f"mxc://{SERVER_NAME}/{media_id}", self.people[name]
        person.put(f"{CLIENT}/profile", user_id(name), "avatar_url", body={"avatar_url": uri})
        give_up = time.monotonic() + 60
        while True:
            member = person.get(f"{CLIENT}/rooms", room, "state", "m.room.member", user_id(name))
            if member.get("avatar_url") == uri:
                return
            if time.monotonic() > give_up:
                raise SystemExit(f"{name}'s new avatar did not reach the room within one minute")
            time.sleep(0.1)

    def let_years_pass(self, ids):
        """Changes the files' timestamps in Synapse's database: no API can do that."""
        now, day = int(time.time() * 1000), 24 * 60 * 60 * 1000
        database = sqlite3.connect(self.database, timeout=60)
        with database:
            for owner, name, _, _, uploaded, read in FILES:
                times = (now - uploaded * day, None if read is None else now - read * day)
                for media_id in ids[owner, name]:
                    changed = database.execute(
                        "UPDATE local_media_repository SET created_ts = ?, last_access_ts = ? WHERE media_id = ?",
                        (*times, media_id),
                    )
                    assert changed.rowcount == 1
        database.close()

    def farewells(self):
        for name, change in (
            ("heidi", {"deactivated": True}),
            ("judy", {"deactivated": True}),
            ("ivan", {"locked": True}),
        ):
            self.admin.put(f"{ADMIN}/v2/users", user_id(name), body=change)


def main():
    home = pathlib.Path(sys.argv[1])
    if newcomer := sys.argv[2:]:
        access = json.loads((home / "access.json").read_text())
        admin = Homeserver(access["url"], (home.parent / "token").read_text().strip())
        admin.put(f"{ADMIN}/v2/users", user_id(newcomer[0]), body={})
        return
    seed = Seed(home)
    seed.accounts()
    rooms = seed.rooms()
    ids = seed.files()
    seed.stickers(rooms, ids)
    seed.profiles(rooms, ids)
    seed.farewells()
    seed.let_years_pass(ids)
    token = home.parent / "token"
    token.touch(mode=0o600)
    token.write_text(seed.token + "\n")
    (home / "rooms.json").write_text(json.dumps(rooms))

    for name, story in PEOPLE.items():
        held = " and ".join(EXTERNAL_IDS.get(name, [])) or "none"
        print(f"  {user_id(name):<22}  {story:<33} external ids: {held}")
    print(f"  {user_id('_bridge_zoe'):<22}  belongs to a bridge")
    total = sum(count * size for _, _, count, size, *_ in FILES)
    print(f"  {sum(file[2] for file in FILES)} files, {total / KIB / KIB:.1f} MiB, new and old")


main()
