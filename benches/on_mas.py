"""What it takes to remove links where MAS manages the accounts."""

import base64
import http.client
import json
import subprocess
import urllib.parse

from bench import WORK, Program, fact, figure, median, report_of, shown

CLIENT_ID, SECRET = "01J44RKQYM4G3TNVANTMTDYTX6", "s3cret-of-the-client"
# The default of `max_concurrent_requests`.
CONCURRENCY = 4


def main(microglia, fake, small):
    links, removed, repeats = (2_000, 50, 1) if small else (100_000, 500, 3)
    reading, ours, bare = [], [], []
    for number in range(repeats):
        mas = Mas(fake, links, removed)
        config = mas.config(f"mas-{number}")
        report, _ = report_of(microglia, config, "ids", "--dry-run")
        assert report["planned"] == removed, report
        reading.append(mas.requests_and_seconds()[0])
        report, _ = report_of(microglia, config, "ids", "--apply")
        assert report["done"] == removed, report
        ours.append(removed / mas.requests_and_seconds()[1])
        mas.stop()
        mas = Mas(fake, links, removed)
        command = [fake, "remove", mas.admin_api, mas.token(), CONCURRENCY, *mas.links]
        subprocess.run([str(part) for part in command], check=True)
        bare.append(removed / mas.requests_and_seconds()[1])
        mas.stop()
    figure(f"remove-external-ids under MAS, {links:,} links: requests for reading", median(reading), 160)
    figure(f"the same: rate of removing {removed}, relative to a bare loop with the same requests", median(ours) / median(bare), 0.9, worst=min)
    fact(f"links per second: {shown(ours)}; the bare loop: {shown(bare)}")


class Mas:
    """The fake homeserver with its MAS, in a process of its own."""

    def __init__(self, fake, links, removed):
        self.process = Program([fake, "mas", links, removed], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=None)
        self.homeserver, self.public, self.admin_api = self.line().split()
        self.links = self.line().split()

    def line(self):
        return self.process.process.stdout.readline().decode()

    def requests_and_seconds(self):
        """Of the requests since the last call."""
        self.process.process.stdin.write(b"\n")
        self.process.process.stdin.flush()
        requests, _, seconds = self.line().split()
        return int(requests), float(seconds)

    def token(self):
        credentials = base64.b64encode(f"{CLIENT_ID}:{SECRET}".encode()).decode()
        connection = http.client.HTTPConnection(urllib.parse.urlsplit(self.admin_api).netloc)
        headers = {"Authorization": f"Basic {credentials}", "Content-Type": "application/x-www-form-urlencoded"}
        connection.request("POST", "/oauth2/token", "grant_type=client_credentials&scope=urn%3Amas%3Aadmin", headers)
        return json.loads(connection.getresponse().read())["access_token"]

    def config(self, name):
        home = WORK / "now" / name
        home.mkdir(parents=True)
        secret = home / "secret"
        secret.touch(mode=0o600)
        secret.write_text(SECRET)
        config = home / "microglia.toml"
        config.write_text(
            f"[daemon]\nstate_dir = {json.dumps(str(home / 'state'))}\n"
            f'[homeservers.main]\nurl = "{self.homeserver}"\nmax_requests_per_second = "unlimited"\n'
            f'[homeservers.main.mas]\nurl = "{self.public}"\nadmin_url = "{self.admin_api}"\nclient_id = "{CLIENT_ID}"\n'
            'client_secret_file = "secret"\naccount = "microglia"\n'
            '[jobs.ids]\nkind = "remove-external-ids"\nproviders = ["Google"]\naccounts = "deactivated"\nmax_changes = "unlimited"\n'
        )
        return config

    def stop(self):
        self.process.stop()
