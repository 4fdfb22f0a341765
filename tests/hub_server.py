"""A local stand-in for the Hub's data sets: what is pushed to it can be loaded from it.

It answers the requests of `huggingface_hub` and `datasets` for creating, committing (through LFS), listing and
downloading, keeps everything in memory and knows one revision, `main`.
"""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlparse


class HubServer:
    """`with HubServer() as hub:` serves at `hub.url`; `hub.files` is {repository: {path: content}}."""

    def __init__(self):
        self.files: dict[str, dict[str, bytes]] = {}
        self.blobs: dict[str, bytes] = {}  # LFS objects by SHA-256
        self.requests: list[str] = []
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> "HubServer":
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self.server.shutdown()
        self.server.server_close()

    def revision(self, repository: str) -> str:
        """Changes with the content, as a commit does."""
        digest = hashlib.sha1(repository.encode())
        for name, data in sorted(self.files[repository].items()):
            digest.update(name.encode() + hashlib.sha1(data).digest())
        return digest.hexdigest()

    def entry(self, repository: str, path: str) -> dict[str, Any]:
        data = self.files[repository][path]
        oid = hashlib.sha256(data).hexdigest()
        return {
            "type": "file",
            "path": path,
            "size": len(data),
            "oid": hashlib.sha1(data).hexdigest(),
            "lfs": {"oid": oid, "size": len(data), "pointerSize": 130},
        }


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_) -> None:
        pass

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            data = b""
            while size := int(self.rfile.readline(), 16):
                data += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return data
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def answer(self, content: Any, status: int = 200, **headers: str) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def missing(self, code: str) -> None:
        self.answer({"error": "not found"}, 404, X_Error_Code=code, X_Error_Message="not found")

    def route(self) -> None:
        path = unquote(urlparse(self.path).path)
        body = self.body()
        self.hub.requests.append(f"{self.command} {path}")
        repo = r"(?P<repo>[\w.-]+/[\w.-]+)"
        for method, pattern, handle in (
            ("POST", r"/api/repos/create", self.create),
            ("POST", r"/api/validate-yaml", lambda _: self.answer({"errors": [], "warnings": []})),
            ("POST", rf"/api/datasets/{repo}/preupload/main", self.preupload),
            ("POST", rf"/datasets/{repo}\.git/info/lfs/objects/batch", self.batch),
            ("PUT", r"/upload/(?P<oid>\w+)", self.upload),
            ("POST", rf"/api/datasets/{repo}/commit/main", self.commit),
            ("POST", rf"/api/datasets/{repo}/paths-info/(?P<revision>\w+)", self.paths_info),
            ("GET", rf"/api/datasets/{repo}/tree/(?P<revision>\w+)(/(?P<path>.+))?", self.tree),
            ("GET", rf"/api/datasets/{repo}(/revision/(?P<revision>\w+))?", self.info),
            ("GET", rf"/datasets/{repo}/resolve/(?P<revision>\w+)/(?P<path>.+)", self.resolve),
        ):
            match = re.fullmatch(pattern, path)
            if match and self.command in (method, {"GET": "HEAD"}.get(method)):
                self.data = body
                if "repo" in match.groupdict() and match["repo"] not in self.hub.files:
                    return self.missing("RepoNotFound")
                return handle(match)
        return self.missing("EntryNotFound")

    do_GET = do_HEAD = do_POST = do_PUT = route

    def create(self, _) -> None:
        asked = json.loads(self.data)
        name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
        self.hub.files.setdefault(name, {})
        self.answer({"url": f"{self.hub.url}/datasets/{name}", "name": name, "id": name})

    def preupload(self, _) -> None:
        answers = []
        for file in json.loads(self.data)["files"]:
            mode = "lfs" if file["path"].endswith(".parquet") else "regular"
            answers.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False})
        self.answer({"files": answers})

    def batch(self, _) -> None:
        objects = [
            {**asked, "actions": {"upload": {"href": f"{self.hub.url}/upload/{asked['oid']}", "header": {}}}}
            for asked in json.loads(self.data)["objects"]
        ]
        self.answer({"transfer": "basic", "objects": objects})

    def upload(self, match) -> None:
        assert hashlib.sha256(self.data).hexdigest() == match["oid"]
        self.hub.blobs[match["oid"]] = self.data
        self.answer({})

    def commit(self, match) -> None:
        files = self.hub.files[match["repo"]]
        for line in self.data.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.hub.blobs[value["oid"]]
        revision = self.hub.revision(match["repo"])
        url = f"{self.hub.url}/datasets/{match['repo']}/commit/{revision}"
        self.answer({"success": True, "commitOid": revision, "commitUrl": url, "hookOutput": ""})

    def info(self, match) -> None:
        repo = match["repo"]
        siblings = [{"rfilename": path} for path in sorted(self.hub.files[repo])]
        self.answer(
            {
                "id": repo,
                "author": repo.split("/")[0],
                "sha": self.hub.revision(repo),
                "private": False,
                "gated": False,
                "disabled": False,
                "tags": [],
                "downloads": 0,
                "likes": 0,
                "siblings": siblings,
            }
        )

    def tree(self, match) -> None:
        inside = f"{match['path']}/" if match["path"] else ""
        recursive = "recursive=True" in self.path or "recursive=true" in self.path
        entries, folders = [], set()
        for path in sorted(self.hub.files[match["repo"]]):
            if not path.startswith(inside):
                continue
            rest = path[len(inside) :]
            if "/" in rest:
                folders.add(inside + rest.split("/")[0])
            if recursive or "/" not in rest:
                entries.append(self.hub.entry(match["repo"], path))
        if inside and not entries and not folders:
            return self.missing("EntryNotFound")
        entries += [{"type": "directory", "path": folder, "oid": "0" * 40, "size": 0} for folder in sorted(folders)]
        return self.answer(entries)

    def paths_info(self, match) -> None:
        asked = json.loads(self.data)["paths"] if self.data.startswith(b"{") else []
        files, answers = self.hub.files[match["repo"]], []
        for path in asked:
            if path in files:
                answers.append(self.hub.entry(match["repo"], path))
            elif any(name.startswith(f"{path}/") for name in files):
                answers.append({"type": "directory", "path": path, "oid": "0" * 40, "size": 0})
        self.answer(answers)

    def resolve(self, match) -> None:
        data = self.hub.files[match["repo"]].get(match["path"])
        if data is None:
            return self.missing("EntryNotFound")
        headers = {
            "ETag": f'"{hashlib.sha256(data).hexdigest()}"',
            "X_Repo_Commit": self.hub.revision(match["repo"]),
            "Accept_Ranges": "bytes",
            "Content_Type": "application/octet-stream",
        }
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted is None:
            return self.answer(data, **headers)
        start = int(wanted[1])
        stop = min(int(wanted[2]) + 1 if wanted[2] else len(data), len(data))
        headers["Content_Range"] = f"bytes {start}-{stop - 1}/{len(data)}"
        return self.answer(data[start:stop], 206, **headers)
