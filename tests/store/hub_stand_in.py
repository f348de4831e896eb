"""A hub of one repository on loopback: enough of its HTTP interface for an upload."""

import base64
import hashlib
import json
import re
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Hub(ThreadingHTTPServer):
    """What was uploaded, and how it misbehaves.

    Attributes:
        files: Path to content, of what was committed.
        stored: SHA-256 to content, of large files that were sent.
        commits: How many there were.
        private: Whether the repository is; None before it is made.
        drops: Method and end of a path to how many requests are answered by a closed connection.
        refuses: Method and end of a path to the status that it is answered with.
        asked: Method and path of every request.
        tokens: What commits were authorized by.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answering)
        self.files, self.stored, self.commits, self.private = {}, {}, 0, None
        self.drops, self.refuses, self.asked, self.tokens = Counter(), {}, [], set()
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def handle_error(self, request, client_address):
        pass  # of connections that a test drops


class Answering(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *_):
        pass

    def answer(self, content, status=200):
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do(self):
        hub, path = self.server, self.path.partition("?")[0]
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        hub.asked.append(f"{self.command} {path}")
        if "/commit/" in path:
            hub.tokens.add(self.headers.get("Authorization"))
        for what in hub.drops:
            if f"{self.command} {path}".endswith(what) and hub.drops[what]:
                hub.drops[what] -= 1
                self.close_connection = True
                return self.connection.close()
        for what, status in hub.refuses.items():
            if f"{self.command} {path}".endswith(what):
                return self.answer(
                    {"error": f"stand-in says {status}", "url": hub.url + "/a/b"}, status
                )
        if self.command == "PUT":
            hub.stored[hashlib.sha256(body).hexdigest()] = body
            return self.answer({})
        if path == "/api/repos/create":
            return self.create(json.loads(body))
        if path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        if path.endswith("/info/lfs/objects/batch"):
            return self.answer({"transfer": "basic", "objects": [
                {**one, "actions": {"upload": {"href": f"{hub.url}/store/{one['oid']}"}}}
                for one in json.loads(body)["objects"]
            ]})  # fmt: skip
        if "/preupload/" in path:
            return self.answer({"files": [self.known(one) for one in json.loads(body)["files"]]})
        if "/commit/" in path:
            return self.commit([json.loads(line) for line in body.splitlines()])
        if self.command == "GET" and re.fullmatch(r"/api/models/[^/]+/[^/]+", path):
            found = {"id": path[12:], "private": hub.private, "sha": "0" * 40, "siblings": []}
            return self.answer(found)
        return self.answer({"error": "no such file"}, 404)

    do_GET = do_POST = do_PUT = do_HEAD = do

    def create(self, asked):
        name = f"{asked['organization']}/{asked['name']}"
        found = {"url": f"{self.server.url}/{name}", "id": name}
        if self.server.private is not None:
            return self.answer({"error": "You already created this model repo", **found}, 409)
        self.server.private = asked.get("visibility") == "private" or bool(asked.get("private"))
        return self.answer(found)

    def known(self, one):
        kind = "lfs" if one["path"].endswith(".safetensors") else "regular"
        return {"path": one["path"], "uploadMode": kind, "shouldIgnore": False, "oid": None}

    def commit(self, lines):
        hub = self.server
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                hub.files[value["path"]] = base64.b64decode(value["content"])
            if line["key"] == "lfsFile":
                hub.files[value["path"]] = hub.stored[value["oid"]]
        hub.commits += 1
        return self.answer({"commitUrl": f"{hub.url}/a/b/commit/1", "commitOid": "1" * 40})
