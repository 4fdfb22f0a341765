"""A local stand-in for the Hub: models, data sets and Spaces that are pushed to it can be loaded from it.

It answers the requests of `huggingface_hub`, `transformers`, `datasets` and `evaluate` for creating, committing
(through LFS, in one piece or in parts), listing and downloading, keeps everything in memory and knows one revision,
`main`. Whoever brings a token is the user `someone`; without one nothing can be written, nor read if it is private.
"""

import base64
import hashlib
import json
import os
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlparse


USER = "someone"
LFS = (".parquet", ".safetensors")


class HubServer:
    """`with HubServer() as hub:` serves at `hub.url`; `hub.files` is {repository: {path: content}}.

    part_size: bytes of a part of an LFS upload; None asks for the whole in one piece.
    """

    def __init__(self, part_size: int | None = None):
        self.part_size = part_size
        self.files: dict[str, dict[str, bytes]] = {}
        self.kinds: dict[str, str] = {}  # models, datasets or spaces
        self.private: set[str] = set()
        self.commits: list[str] = []  # the repository of each, in their order
        self.blobs: dict[str, bytes] = {}  # LFS objects by SHA-256
        self.parts: dict[tuple[str, int], bytes] = {}
        self.requests: list[str] = []
        self.failures: list[list] = []
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> "HubServer":
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self.server.shutdown()
        self.server.server_close()

    def environment(self, home: Path, token: str | None = "hf_none") -> dict[str, str]:
        """The variables of a process that takes this for the Hub, with caches of its own under `home`."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "PYTHONPATH"))}
        own = {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }
        return inherited | own | ({} if token is None else {"HF_TOKEN": token})

    def add(self, name: str, folder: Path) -> None:
        """Make a folder's files a model's repository."""
        self.kinds[name] = "models"
        self.files[name] = {path.name: path.read_bytes() for path in folder.iterdir()}

    def fail(self, pattern: str, how: int | str, times: int = 1) -> None:
        """The next `times` requests "METHOD path" in which `pattern` is found fail.

        how: a status, or "cut": the connection breaks in the middle of what the request or its answer carries.
        """
        self.failures.append([pattern, how, times])

    def failure(self, request: str) -> int | str | None:
        """How this request is to fail, None if it is not."""
        for failure in self.failures:
            if failure[2] and re.search(failure[0], request):
                failure[2] -= 1
                return failure[1]
        return None

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
        if self.cut:
            self.wfile.write(data[: len(data) // 2])
            self.close_connection = True
        elif self.command != "HEAD":
            self.wfile.write(data)

    def missing(self, code: str) -> None:
        self.answer({"error": "not found"}, 404, X_Error_Code=code, X_Error_Message="not found")

    def fail(self, how: int | str) -> None:
        if how == "cut":
            self.rfile.read(int(self.headers["Content-Length"]) // 2)
            self.close_connection = True
        else:
            self.body()
            more = {"Retry_After": "0"} if how == 429 else {}
            self.answer({"error": f"made to fail with {how}"}, how, **more)

    def route(self) -> None:
        path = unquote(urlparse(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        how = self.hub.failure(f"{self.command} {path}")
        self.cut = how == "cut" and self.command == "GET"
        if how is not None and not self.cut:
            return self.fail(how)
        self.data = self.body()
        repo = r"(?P<repo>[\w.-]+/[\w.-]+)"
        api, site = rf"/api/(?P<kind>models|datasets|spaces)/{repo}", rf"/((?P<kind>datasets|spaces)/)?{repo}"
        for method, pattern, handle in (
            ("GET", r"/api/whoami-v2", self.whoami),
            ("POST", r"/api/repos/create", self.create),
            ("POST", r"/api/validate-yaml", lambda _: self.answer({"errors": [], "warnings": []})),
            ("POST", rf"{api}/preupload/main", self.preupload),
            ("POST", rf"{site}\.git/info/lfs/objects/batch", self.batch),
            ("PUT", r"/upload/(?P<oid>\w+)(/(?P<part>\d+))?", self.upload),
            ("POST", r"/upload/(?P<oid>\w+)", self.join_parts),
            ("POST", rf"{api}/commit/main", self.commit),
            ("POST", rf"{api}/paths-info/(?P<revision>\w+)", self.paths_info),
            ("GET", rf"{api}/tree/(?P<revision>\w+)(/(?P<path>.+))?", self.tree),
            ("GET", rf"{api}(/revision/(?P<revision>\w+))?", self.info),
            ("GET", rf"{site}/resolve/(?P<revision>[\w.]+)/(?P<path>.+)", self.resolve),
        ):
            match = re.fullmatch(pattern, path)
            if match and self.command in (method, {"GET": "HEAD"}.get(method)):
                return self.admit(handle, match)
        return self.missing("EntryNotFound")

    do_GET = do_HEAD = do_POST = do_PUT = route

    def admit(self, handle, match) -> None:
        """Answer by `handle` unless the token, the repository or the revision is missing."""
        known, asked = self.headers.get("Authorization", "").startswith("Bearer hf_"), match.groupdict()
        if not known and handle in (self.create, self.preupload, self.batch, self.commit):
            return self.answer({"error": "Invalid username or password."}, 401)
        if "repo" in asked:
            name, kind = asked["repo"], asked["kind"] or "models"
            if self.hub.kinds.get(name) != kind or (name in self.hub.private and not known):
                return self.missing("RepoNotFound")
            if asked.get("revision") not in (None, "main", self.hub.revision(name)):
                return self.missing("RevisionNotFound")
        return handle(match)

    def whoami(self, _) -> None:
        if not self.headers.get("Authorization", "").startswith("Bearer hf_"):
            return self.answer({"error": "Invalid credentials in Authorization header"}, 401)
        return self.answer({"type": "user", "name": USER, "fullname": USER, "orgs": [], "auth": {}})

    def create(self, _) -> None:
        asked = json.loads(self.data)
        name, kind = f"{asked.get('organization') or USER}/{asked['name']}", f"{asked.get('type') or 'model'}s"
        status = 409 if name in self.hub.files else 200
        if not name.startswith(f"{USER}/"):
            return self.answer({"error": f"{USER} may not write to {name}"}, 403)
        if status == 200:
            self.hub.files[name], self.hub.kinds[name] = {}, kind
            if asked.get("visibility") == "private" or asked.get("private"):
                self.hub.private.add(name)
        return self.answer({"url": self.address(kind, name), "name": name, "id": name}, status)

    def address(self, kind: str, name: str) -> str:
        return f"{self.hub.url}/{name}" if kind == "models" else f"{self.hub.url}/{kind}/{name}"

    def preupload(self, _) -> None:
        answers = []
        for file in json.loads(self.data)["files"]:
            mode = "lfs" if file["path"].endswith(LFS) else "regular"
            answers.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False})
        self.answer({"files": answers})

    def batch(self, _) -> None:
        objects = []
        for asked in json.loads(self.data)["objects"]:
            if asked["oid"] in self.hub.blobs:  # nothing to upload
                objects.append(asked)
                continue
            address, size = f"{self.hub.url}/upload/{asked['oid']}", self.hub.part_size
            header = {}
            if size is not None:
                count = -(-asked["size"] // size)
                header = {"chunk_size": str(size), **{str(n): f"{address}/{n}" for n in range(1, count + 1)}}
            objects.append({**asked, "actions": {"upload": {"href": address, "header": header}}})
        self.answer({"transfer": "basic" if self.hub.part_size is None else "multipart", "objects": objects})

    def upload(self, match) -> None:
        if match["part"] is None:
            return self.keep(match["oid"], self.data)
        self.hub.parts[match["oid"], int(match["part"])] = self.data
        return self.answer({}, ETag=f'"{hashlib.md5(self.data).hexdigest()}"')

    def join_parts(self, match) -> None:
        numbers = [part["partNumber"] for part in json.loads(self.data)["parts"]]
        self.keep(match["oid"], b"".join(self.hub.parts[match["oid"], number] for number in numbers))

    def keep(self, oid: str, data: bytes) -> None:
        if hashlib.sha256(data).hexdigest() != oid:
            return self.answer({"error": "the content has another hash"}, 400)
        self.hub.blobs[oid] = data
        return self.answer({})

    def commit(self, match) -> None:
        files, entries = dict(self.hub.files[match["repo"]]), [json.loads(line) for line in self.data.splitlines()]
        for entry in entries:
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.hub.blobs[value["oid"]]
        self.hub.files[match["repo"]] = files
        self.hub.commits.append(match["repo"])
        revision = self.hub.revision(match["repo"])
        url = f"{self.address(match['kind'], match['repo'])}/commit/{revision}"
        self.answer({"success": True, "commitOid": revision, "commitUrl": url, "hookOutput": ""})

    def info(self, match) -> None:
        repo = match["repo"]
        siblings = [{"rfilename": path} for path in sorted(self.hub.files[repo])]
        self.answer(
            {
                "id": repo,
                "author": repo.split("/")[0],
                "sha": self.hub.revision(repo),
                "private": repo in self.hub.private,
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
        asked = json.loads(self.data) if self.data.startswith(b"{") else parse_qs(self.data.decode())
        files, answers = self.hub.files[match["repo"]], []
        for path in asked["paths"]:
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
