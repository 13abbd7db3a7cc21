"""The servers that are compared. Each makes fresh clones of one image, serves them, and takes
everything away again: open(clones) -> targets of bench_client, close().

Every child is started by start() below, is bounded in time, and is ended by its own pid."""

import glob
import json
import os
import shutil
import signal
import socket
import subprocess
import time


class Failed(Exception):
    """A server or tool did not do what the comparison needs."""


def run(*command, timeout=900, **options):
    """Runs a tool to its end; its standard output. Failed if it fails or takes too long."""
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                              timeout=timeout, text=True, **options)
    except subprocess.TimeoutExpired as late:
        raise Failed(f"{command[0]}: not done after {timeout} s") from late
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise Failed(f"{' '.join(command[:4])} ...: exit {done.returncode}: {said[-1:] or ''}")
    return done.stdout


class Server:
    name = ""
    durable = True  # what a flush answers is on the device
    note = ""
    fuse = False  # can serve the FUSE rows
    program = ""

    def __init__(self, bench):
        self.bench = bench
        self.children = []
        self.folder = os.path.join(bench.work, self.name.replace(" ", "-"))

    def available(self):
        return shutil.which(self.program) is not None

    def version(self):
        return run(self.program, "--version").splitlines()[0]

    def start(self, *command, **options):
        log = open(os.path.join(self.folder, "server.log"), "a")
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, **options)
        log.close()
        self.children.append(child)
        return child

    def fresh_folder(self):
        shutil.rmtree(self.folder, ignore_errors=True)
        os.makedirs(self.folder)

    def wait_socket(self, path):
        for _ in range(600):
            try:
                with socket.socket(socket.AF_UNIX) as probe:
                    probe.connect(path)
                    return
            except OSError:
                if any(c.poll() is not None for c in self.children):
                    break
                time.sleep(0.05)
        with open(os.path.join(self.folder, "server.log")) as log:
            raise Failed(f"{self.name} does not serve: {log.read()[-400:]}")

    def stop_children(self):
        """Asks, then insists after 60 seconds."""
        for child in self.children:
            child.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + 60
        for child in self.children:
            try:
                child.wait(max(deadline - time.monotonic(), 0.1))
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait(10)
        self.children = []

    def close(self):
        self.stop_children()
        shutil.rmtree(self.folder, ignore_errors=True)

    def linked(self, number):
        """A fresh qcow2 clone of the image."""
        path = os.path.join(self.folder, f"c{number}.qcow2")
        run("qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", self.bench.image, path)
        return path


class QemuNbd(Server):
    """One process a clone. cache=writeback is its best mode: reads come from the page cache and a
    flush is an fdatasync, so it is as durable as any."""

    name = "qemu-nbd"
    program = "qemu-nbd"
    note = "qcow2 over raw, cache=writeback, aio=io_uring"

    def open(self, clones):
        self.fresh_folder()
        targets = []
        for i in range(clones):
            path, sock = self.linked(i), os.path.join(self.folder, f"{i}.sock")
            self.start("qemu-nbd", "--persistent", "--shared=8", "--format=qcow2",
                       "--cache=" + self.bench.qemu_cache, "--aio=io_uring", "--discard=unmap",
                       "--socket=" + sock, path)
            targets.append(f"{sock},")
        for target in targets:
            self.wait_socket(target.split(",")[0])
        return targets


class QemuStorageDaemon(Server):
    name = "qemu-storage-daemon"
    program = "qemu-storage-daemon"
    note = "qcow2 over raw, iothread, cache=writeback, aio=io_uring"
    fuse = True

    def arguments(self, clones):
        made = ["qemu-storage-daemon", "--object", "iothread,id=io"]
        for i in range(clones):
            direct = "on" if self.bench.qemu_cache == "none" else "off"
            made += ["--blockdev", f"driver=qcow2,node-name=n{i},file.driver=file,"
                     f"file.filename={self.linked(i)},file.aio=io_uring,"
                     f"file.cache.direct={direct},cache.direct={direct}"]
        return made

    def open(self, clones):
        self.fresh_folder()
        sock = os.path.join(self.folder, "nbd.sock")
        made = self.arguments(clones)
        made += ["--nbd-server", f"addr.type=unix,addr.path={sock},max-connections=0"]
        for i in range(clones):
            made += ["--export", f"type=nbd,id=e{i},node-name=n{i},name=c{i},writable=on,iothread=io"]
        self.start(*made)
        self.wait_socket(sock)
        return [f"{sock},c{i}" for i in range(clones)]

    def open_file(self):
        self.fresh_folder()
        path = os.path.join(self.folder, "export")
        open(path, "w").close()
        self.start(*self.arguments(1), "--export",
                   f"type=fuse,id=e0,node-name=n0,mountpoint={path},writable=on,iothread=io")
        for _ in range(600):
            if os.stat(path).st_size:
                return path
            time.sleep(0.05)
        raise Failed("qemu-storage-daemon: its FUSE export does not appear")


class NbdkitCow(Server):
    name = "nbdkit cow"
    program = "nbdkit"
    durable = False
    note = "--filter=cow file; its flush does nothing"

    def open(self, clones):
        self.fresh_folder()
        sockets = [os.path.join(self.folder, f"{i}.sock") for i in range(clones)]
        for sock in sockets:
            self.start("nbdkit", "--foreground", "--unix=" + sock, "--filter=cow", "file",
                       self.bench.image, env=dict(os.environ, TMPDIR=self.folder))
        for sock in sockets:
            self.wait_socket(sock)
        return [f"{sock}," for sock in sockets]


class Ceiling(Server):
    name = "ceiling"
    durable = False
    note = "no engine: a mapped file, private writes in memory"
    fuse = True

    def available(self):
        return os.path.exists(self.bench.tool("bench_ceiling"))

    def version(self):
        return "this tree"

    def open(self, clones):
        self.fresh_folder()
        sock = os.path.join(self.folder, "nbd.sock")
        self.start(self.bench.tool("bench_ceiling"), "--image", self.bench.image, "--unix", sock)
        self.wait_socket(sock)
        return [f"{sock},c{i}" for i in range(clones)]

    def open_file(self):
        self.fresh_folder()
        mount = os.path.join(self.folder, "mount")
        os.mkdir(mount)
        self.start(self.bench.tool("bench_ceiling"), "--image", self.bench.image, "--mount", mount)
        return wait_file(self, os.path.join(mount, "disk.raw"))


def wait_file(server, path):
    for _ in range(600):
        if os.path.exists(path):
            return path
        if any(c.poll() is not None for c in server.children):
            break
        time.sleep(0.05)
    raise Failed(f"{server.name}: {path} does not appear")


class Gild(Server):
    """One daemon a run; the image is imported once and the store kept for all rows."""

    name = "gild"
    fuse = True

    def __init__(self, bench):
        super().__init__(bench)
        self.store = os.path.join(bench.work, "gild-store")
        self.environment = None  # for the daemon, when its allocations are counted

    def available(self):
        return all(os.path.exists(self.bench.tool(p)) for p in ("gild", "gildd"))

    def version(self):
        return run(self.bench.tool("gildd"), "--version").splitlines()[0]

    def gild(self, *arguments, store=None, prefix=(), timeout=900):
        return run(*prefix, self.bench.tool("gild"), "--store", store or self.store, *arguments,
                   timeout=timeout)

    def prepare(self):
        if not os.path.exists(self.store):
            self.gild("store", "init")
            self.gild("image", "import", "base", self.bench.image)

    def drop_store(self):
        shutil.rmtree(self.store, ignore_errors=True)

    def daemon(self, *arguments):
        sock = os.path.join(self.folder, "nbd.sock")
        child = self.start(self.bench.tool("gildd"), "--store", self.store, "--nbd", "unix:" + sock,
                           *arguments, *self.bench.gildd_options, env=self.environment)
        self.wait_socket(sock)
        return sock, child

    def open(self, clones):
        self.prepare()
        self.fresh_folder()
        sock, _ = self.daemon()
        self.gild("desktop", "create", "b", "--image", "base", "--count", str(clones),
                  "--name-pattern", "b%04d")
        return [f"{sock},desktops/b{i + 1:04d}/os" for i in range(clones)]

    def open_file(self):
        self.prepare()
        self.fresh_folder()
        mount = os.path.join(self.folder, "mount")
        os.mkdir(mount)
        self.daemon("--mount", mount)
        self.gild("desktop", "create", "b0001", "--image", "base")
        return wait_file(self, os.path.join(mount, "desktops/b0001/os.raw"))

    def close(self):
        """Clones are deleted with the daemon up, and the daemon is let end in order. A log that
        has grown past the budget costs the store, which is made again for the next row."""
        alive = self.children and self.children[0].poll() is None
        if alive:
            if json.loads(self.gild("-o", "json", "desktop", "list") or "[]"):
                self.gild("--yes", "desktop", "delete", "b*")
        self.stop_children()
        shutil.rmtree(self.folder, ignore_errors=True)
        size = sum(os.stat(f).st_blocks * 512
                   for f in glob.glob(self.store + "/**", recursive=True) if os.path.isfile(f))
        if size > self.bench.store_budget or (self.environment and not alive):
            self.drop_store()


PEERS = (QemuNbd, QemuStorageDaemon, NbdkitCow)
