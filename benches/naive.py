"""The plain script that most operators start from, to compare with. Every request is a new connection.

usage: naive.py URL TOKEN remove-external-ids PROVIDER
       naive.py URL TOKEN join-rooms ROOM…
"""

import json
import sys
import urllib.parse
import urllib.request

# Loopback, whatever proxy the environment names.
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def call(method, path, body=None):
    request = urllib.request.Request(URL + path, None if body is None else json.dumps(body).encode(), method=method)
    request.add_header("Authorization", f"Bearer {TOKEN}")
    with OPENER.open(request, timeout=60) as answer:
        return json.load(answer)


def users():
    start = "0"
    while start is not None:
        page = call("GET", f"/_synapse/admin/v2/users?from={start}&limit=100&guests=false")
        yield from (user["name"] for user in page["users"])
        start = page.get("next_token")


def remove_external_ids(provider):
    for name in users():
        path = "/_synapse/admin/v2/users/" + urllib.parse.quote(name, safe="")
        held = call("GET", path)["external_ids"]
        if held:
            call("PUT", path, {"external_ids": [it for it in held if it["auth_provider"] != provider]})


def join_rooms(rooms):
    everybody = list(users())
    for room in rooms:
        for name in everybody:
            call("POST", "/_synapse/admin/v1/join/" + urllib.parse.quote(room, safe=""), {"user_id": name})


URL, TOKEN, task, *arguments = sys.argv[1:]
if task == "remove-external-ids":
    remove_external_ids(*arguments)
elif task == "join-rooms":
    join_rooms(arguments)
else:
    sys.exit(__doc__)
