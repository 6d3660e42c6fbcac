"""A homeserver with as many files as wanted, which it makes up when they are listed: the fake of the tests would have to hold them all."""

import http.server
import json
import re
import threading
import urllib.parse

ACCOUNT = "@microglia:files.test"
# Long before any cut-off: 2001.
UPLOADED = 1_000_000_000_000


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query))
        path = urllib.parse.unquote(url.path)
        status, body = self.server.answer(path, int(query.get("from", 0)), int(query.get("limit", 100)))
        data = body.encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


class Files(http.server.ThreadingHTTPServer):
    """`owners` accounts with `each` files each."""

    daemon_threads = True
    token = "files-token"

    def __init__(self, owners, each):
        super().__init__(("127.0.0.1", 0), Handler)
        self.owners, self.each = owners, each
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def stop(self):
        self.shutdown()
        self.server_close()

    def answer(self, path, start, limit):
        if path == "/_synapse/admin/v1/server_version":
            return 200, json.dumps({"server_version": "1.163.2"})
        if path == "/_matrix/client/v3/account/whoami":
            return 200, json.dumps({"user_id": ACCOUNT, "is_guest": False})
        if path == f"/_synapse/admin/v2/users/{ACCOUNT}":
            return 200, json.dumps({"name": ACCOUNT, "admin": True, "deactivated": False, "locked": False})
        if path == "/_synapse/admin/v1/statistics/users/media":
            stop = min(start + limit, self.owners)
            users = [
                {"user_id": f"@user{number:06}:files.test", "media_count": self.each, "media_length": self.each * 1000}
                for number in range(start, stop)
            ]
            more = {"next_token": stop} if stop < self.owners else {}
            return 200, json.dumps({"users": users, "total": self.owners, **more})
        if found := re.fullmatch(r"/_synapse/admin/v1/users/@user(\d+):files\.test/media", path):
            return 200, self.page(int(found[1]), start, min(start + limit, self.each))
        return 404, json.dumps({"errcode": "M_UNRECOGNIZED", "error": "Unrecognized request"})

    def page(self, owner, start, stop):
        first = owner * self.each
        rows = ",".join(
            f'{{"media_id":"{first + number:024}","media_type":"image/png","media_length":1000,"upload_name":"picture.png",'
            f'"created_ts":{UPLOADED + (first + number) * 7919 % 10**10},"last_access_ts":null,"quarantined_by":null,"safe_from_quarantine":false}}'
            for number in range(start, stop)
        )
        more = f',"next_token":{stop}' if stop < self.each else ""
        return f'{{"media":[{rows}],"total":{self.each}{more}}}'
