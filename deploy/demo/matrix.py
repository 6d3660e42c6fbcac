"""HTTP for the demo's scripts: one homeserver, one token, JSON requests and responses."""

import json
import urllib.error
import urllib.parse
import urllib.request

SERVER_NAME = "demo.test"


def user_id(localpart):
    return f"@{localpart}:{SERVER_NAME}"


class Homeserver:
    def __init__(self, url, token=None):
        self.url = url
        self.token = token
        # Ignores proxies of the environment: nothing leaves this machine.
        self.opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def acting_as(self, token):
        return Homeserver(self.url, token)

    def get(self, *segments, **query):
        return self.call("GET", segments, query)

    def put(self, *segments, body, **query):
        return self.call("PUT", segments, query, body)

    def post(self, *segments, body, **query):
        return self.call("POST", segments, query, body)

    def call(self, method, segments, query, body=None):
        """Sends a request to the path of `segments`; all but the first are escaped."""
        base, *rest = segments
        path = "/".join([base, *(urllib.parse.quote(segment, safe="") for segment in rest)])
        url = f"{self.url}{path}"
        if query:
            url += "?" + urllib.parse.urlencode(query)
        data, kind = body, "application/octet-stream"
        if body is not None and not isinstance(body, bytes):
            data, kind = json.dumps(body).encode(), "application/json"
        request = urllib.request.Request(url, data, method=method)
        if data is not None:
            request.add_header("Content-Type", kind)
        if self.token:
            request.add_header("Authorization", f"Bearer {self.token}")
        try:
            with self.opener.open(request, timeout=60) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            said = error.read().decode(errors="replace")
            raise SystemExit(f"{method} {path}: {error.code} {said}") from None
        except urllib.error.URLError as error:
            raise SystemExit(f"{method} {path}: {error.reason}") from None
