"""Writes the configuration of a Synapse without federation; prints its URL, and an address for microglia to listen on.

usage: homeserver.py DIRECTORY
"""

import base64
import json
import os
import pathlib
import secrets
import socket
import sys

from matrix import SERVER_NAME


def free_ports():
    with socket.socket() as one, socket.socket() as other:
        for listener in (one, other):
            listener.bind(("127.0.0.1", 0))
        return one.getsockname()[1], other.getsockname()[1]


def main():
    home = pathlib.Path(sys.argv[1]).resolve()
    home.mkdir(parents=True)
    port, listen = free_ports()
    url = f"http://127.0.0.1:{port}"
    unlimited = {"per_second": 10_000, "burst_count": 10_000}
    shared_secret, bridge_token = secrets.token_hex(), secrets.token_hex()

    bridge = {
        "id": "bridge",
        "url": None,
        "as_token": bridge_token,
        "hs_token": secrets.token_hex(),
        "sender_localpart": "_bridge_bot",
        "namespaces": {"users": [{"exclusive": True, "regex": "@_bridge_.*"}]},
    }
    log = {
        "version": 1,
        "formatters": {"line": {"format": "%(asctime)s %(levelname)s %(name)s %(message)s"}},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
        "root": {"level": "INFO", "handlers": ["stderr"]},
        "disable_existing_loggers": False,
    }
    config = {
        "server_name": SERVER_NAME,
        "public_baseurl": url,
        "listeners": [
            {
                "type": "http",
                "port": port,
                "bind_addresses": ["127.0.0.1"],
                "resources": [{"names": ["client"]}],
            }
        ],
        "database": {"name": "sqlite3", "args": {"database": str(home / "homeserver.db")}},
        "media_store_path": str(home / "media"),
        "pid_file": str(home / "homeserver.pid"),
        "log_config": str(home / "log.yaml"),
        "app_service_config_files": [str(home / "bridge.yaml")],
        "signing_key": "ed25519 demo " + base64.b64encode(os.urandom(32)).decode().rstrip("="),
        "registration_shared_secret": shared_secret,
        "macaroon_secret_key": secrets.token_hex(),
        "form_secret": secrets.token_hex(),
        "bcrypt_rounds": 4,
        # No traffic to other machines.
        "trusted_key_servers": [],
        "federation_domain_whitelist": [],
        "report_stats": False,
        "url_preview_enabled": False,
        "presence": {"enabled": False},
        # Seeding is faster than any user.
        "rc_message": unlimited,
        "rc_joins": {"local": unlimited, "remote": unlimited},
        "rc_joins_per_room": unlimited,
        "rc_invites": {"per_room": unlimited, "per_user": unlimited, "per_issuer": unlimited},
        "rc_media_create": unlimited,
        "rc_room_creation": unlimited,
        "rc_profile": unlimited,
    }
    # JSON is YAML.
    for name, content in {"homeserver": config, "log": log, "bridge": bridge}.items():
        (home / f"{name}.yaml").write_text(json.dumps(content, indent=2))
    access = {"url": url, "shared_secret": shared_secret, "bridge_token": bridge_token}
    (home / "access.json").write_text(json.dumps(access))
    print(f"{url}\n127.0.0.1:{listen}")


main()
