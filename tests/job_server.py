"""A job server as Ray's clusters have it, without a cluster: it takes packages, runs each job's
command in a process of its own, and tells its state and what it writes.

What `targetsweep` is to such a job is a script of the test's: it writes its arguments, and ends
when the test says how, or when it is asked to.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import signal
import subprocess
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from aiohttp import web

__all__ = ["FakeJob", "FakeJobServer", "job_server"]

_SCRIPT = """#!/bin/sh
trap 'echo saved; exit 130' TERM
echo "targetsweep $*"
echo ready
while [ ! -e "{go}" ]; do sleep 0.02; done
echo done
exit "$(cat "{go}")"
"""


@dataclass
class FakeJob:
    """folder: what was shipped, unpacked. request: as it came."""

    request: dict[str, Any]
    folder: Path
    log: Path
    process: subprocess.Popen[bytes]
    stopped: bool = False

    @property
    def state(self) -> str:
        if self.process.poll() is None:
            return "RUNNING"
        if self.stopped:
            return "STOPPED"
        return "FAILED" if self.process.returncode else "SUCCEEDED"

    def details(self) -> dict[str, Any]:
        return {
            "type": "SUBMISSION",
            "submission_id": self.request["submission_id"],
            "entrypoint": self.request["entrypoint"],
            "status": self.state,
            "message": f"it is {self.state.lower()}",
            "metadata": self.request.get("metadata"),
            "runtime_env": self.request.get("runtime_env"),
            "driver_exit_code": self.process.poll(),
        }


@dataclass
class FakeJobServer:
    """token: what requests must carry, None for anybody. breaks: log connections that will be cut
    after their first line."""

    folder: Path
    token: str | None = None
    breaks: int = 0
    address: str = ""
    jobs: dict[str, FakeJob] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    _packages: dict[str, bytes] = field(default_factory=dict)

    @property
    def job(self) -> FakeJob:
        (job,) = self.jobs.values()
        return job

    def end(self, status: int) -> None:
        """Lets every job end so."""
        part = self.folder / "go.part"
        part.write_text(str(status))
        part.rename(self.folder / "go")

    # -- HTTP ---------------------------------------------------------------------------------

    def app(self) -> web.Application:
        app = web.Application(middlewares=[self._guard])
        app.router.add_get("/api/version", self._version)
        app.router.add_get("/api/v0/cluster_metadata", self._metadata)
        app.router.add_get("/api/packages/{protocol}/{name}", self._has)
        app.router.add_put("/api/packages/{protocol}/{name}", self._take)
        app.router.add_post("/api/jobs/", self._submit)
        app.router.add_get("/api/jobs/{id}", self._details)
        app.router.add_post("/api/jobs/{id}/stop", self._stop)
        app.router.add_get("/api/jobs/{id}/logs/tail", self._tail)
        return app

    @property
    def _guard(self) -> Any:
        @web.middleware
        async def guard(request: web.Request, handler: Any) -> web.StreamResponse:
            self.requests.append(f"{request.method} {request.path}")
            sent = request.headers.get("Authorization", "")
            if self.token is not None and self.token not in sent:
                return web.Response(status=401, text="Unauthorized: Missing authentication token")
            answer: web.StreamResponse = await handler(request)
            return answer

        return guard

    async def _version(self, request: web.Request) -> web.Response:
        return web.json_response({"version": "4", "ray_version": ray.__version__})

    async def _metadata(self, request: web.Request) -> web.Response:
        return web.json_response(
            {"result": True, "data": {"rayVersion": "2.1.0", "pythonVersion": "3.7.1"}}
        )

    async def _has(self, request: web.Request) -> web.Response:
        there = request.match_info["name"] in self._packages
        return web.Response(status=200 if there else 404)

    async def _take(self, request: web.Request) -> web.Response:
        self._packages[request.match_info["name"]] = await request.read()
        return web.Response()

    async def _submit(self, request: web.Request) -> web.Response:
        asked = await request.json()
        uri = asked["runtime_env"]["working_dir"]
        folder = self.folder / f"job-{len(self.jobs)}"
        with zipfile.ZipFile(io.BytesIO(self._packages[uri.rpartition("/")[2]])) as package:
            package.extractall(folder)
        log = self.folder / f"job-{len(self.jobs)}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                asked["entrypoint"],
                shell=True,
                cwd=folder,
                stdout=output,
                stderr=output,
                env=os.environ
                | asked["runtime_env"].get("env_vars", {})
                | {"PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}"},
                start_new_session=True,
            )
        self.jobs[asked["submission_id"]] = FakeJob(asked, folder, log, process)
        answer = {"job_id": asked["submission_id"], "submission_id": asked["submission_id"]}
        return web.json_response(answer)

    async def _details(self, request: web.Request) -> web.Response:
        job = self.jobs.get(request.match_info["id"])
        if job is None:
            return web.Response(status=404, text="no such job")
        return web.json_response(job.details())

    async def _stop(self, request: web.Request) -> web.Response:
        job = self.jobs[request.match_info["id"]]
        job.stopped = job.process.poll() is None
        if job.stopped:
            os.killpg(job.process.pid, signal.SIGTERM)
        return web.json_response({"stopped": job.stopped})

    async def _tail(self, request: web.Request) -> web.StreamResponse:
        job = self.jobs[request.match_info["id"]]
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        sent = 0
        while True:
            is_over = job.process.poll() is not None
            text = job.log.read_text()
            if len(text) > sent:
                await socket.send_str(text[sent:])
                sent = len(text)
                if self.breaks:
                    self.breaks -= 1
                    assert request.transport is not None
                    request.transport.abort()
                    return socket
            if is_over:
                return socket
            await asyncio.sleep(0.02)


@contextmanager
def job_server(
    folder: Path, *, token: str | None = None, breaks: int = 0
) -> Iterator[FakeJobServer]:
    """Answers on a loopback port until the block ends; its jobs end with it."""
    server = FakeJobServer(folder, token, breaks)
    script = folder / "bin" / "targetsweep"
    script.parent.mkdir(parents=True)
    script.write_text(_SCRIPT.format(go=folder / "go"))
    script.chmod(0o755)
    loop = asyncio.new_event_loop()
    runner = web.AppRunner(server.app())
    loop.run_until_complete(runner.setup())
    site = web.TCPSite(runner, "127.0.0.1", 0)
    loop.run_until_complete(site.start())
    server.address = f"http://127.0.0.1:{runner.addresses[0][1]}"
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield server
    finally:
        for job in server.jobs.values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(job.process.pid, signal.SIGKILL)
            job.process.wait()
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
