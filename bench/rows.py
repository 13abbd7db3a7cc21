"""The rows that are not a plain run of bench_client: making clones, memory at rest, importing, the
device's own flushed write, allocations of a cached read. Each returns {server name: result}."""

import json
import mmap
import os
import shutil
import socket
import struct
import subprocess
import time

from servers import Failed, run


def client(bench, row, targets=(), file=None, seconds=None, verify=0, warm=1):
    """One run of bench_client; its JSON."""
    command = [bench.tool("bench_client"), "--row", row, "--seed", str(bench.seed), "--ranges",
               bench.ranges, "--image", bench.image, "--region", str(bench.region), "--seconds",
               str(seconds), "--warm", str(warm)]
    command += [w for t in targets for w in ("--target", t)]
    command += ["--file", file] if file else ["--verify", str(verify)]
    return json.loads(run(*command, timeout=seconds + 600))


def value(figure, unit, **more):
    return dict(value=figure, unit=unit, **more)


def clones(bench, servers):
    """1,000 clones, made."""
    found = {}
    for server in servers:
        if server.name == "gild":
            server.prepare()
            server.fresh_folder()
            try:
                server.daemon()
                start = time.monotonic()
                server.gild("desktop", "create", "b", "--image", "base", "--count",
                            str(bench.many), "--name-pattern", "b%04d")
                found["gild"] = value(time.monotonic() - start, "s")
            finally:
                server.close()
        elif server.name == "qemu-nbd":
            server.fresh_folder()
            start = time.monotonic()
            for i in range(bench.many):
                server.linked(i)
            found["qemu-nbd"] = value(time.monotonic() - start, "s", note="qemu-img create, not synced")
            server.close()
    return found


def pss(pid):
    with open(f"/proc/{pid}/smaps_rollup") as file:
        for line in file:
            if line.startswith("Pss:"):
                return int(line.split()[1])
    raise Failed(f"no Pss of process {pid}")


def receive(sock, length):
    got = b""
    while len(got) < length:
        part = sock.recv(length - len(got))
        if not part:
            raise Failed("the server closed the connection")
        got += part
    return got


def connect(target):
    """An NBD connection that has chosen its export and then rests."""
    path, export = target.split(",", 1)
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(30)
    sock.connect(path)
    receive(sock, 18)
    name = export.encode()
    sock.sendall(struct.pack(">I", 3) + b"IHAVEOPT" +
                 struct.pack(">III", 7, 6 + len(name), len(name)) + name + b"\0\0")
    while True:
        kind, length = struct.unpack(">II", receive(sock, 20)[12:])
        receive(sock, length)
        if kind == 1:
            return sock
        if kind != 3:
            raise Failed(f"{target}: connection refused with {kind:x}")


def memory(bench, servers):
    """KiB of a clone at rest: known to the daemon only, and with an idle connection."""
    found = {}
    for server in servers:
        if server.name == "gild":
            server.prepare()
            server.fresh_folder()
            sockets = []
            try:
                sock, child = server.daemon()
                server.gild("desktop", "create", "b0001", "--image", "base")
                connect(f"{sock},desktops/b0001/os").close()
                time.sleep(0.5)
                empty = pss(child.pid)
                server.gild("desktop", "create", "b", "--image", "base", "--count",
                            str(bench.many), "--name-pattern", "bm%04d")
                known = pss(child.pid)
                for i in range(bench.many):
                    sockets.append(connect(f"{sock},desktops/bm{i + 1:04d}/os"))
                open_ = pss(child.pid)
            finally:
                for s in sockets:
                    s.close()
                server.close()
            found["gild"] = value((open_ - empty) / bench.many, "KiB", known=(known - empty) / bench.many,
                                  daemon=empty, note="one idle connection each")
        elif server.name == "qemu-nbd":
            count = min(bench.many, 20)
            targets, sockets = server.open(count), []
            try:
                sockets = [connect(t) for t in targets]
                found["qemu-nbd"] = value(sum(pss(c.pid) for c in server.children) / count, "KiB",
                                          note=f"{count} processes")
            finally:
                for s in sockets:
                    s.close()
                server.close()
        elif server.name == "qemu-storage-daemon":
            found[server.name] = daemon_memory(bench, server)
    return found


def daemon_memory(bench, server):
    """The difference between two sizes of one daemon, each clone with an idle connection."""
    sizes = {}
    for count in (1, 1 + min(bench.many, 100)):
        sockets = []
        targets = server.open(count)
        try:
            sockets = [connect(t) for t in targets]
            sizes[count] = pss(server.children[0].pid)
        finally:
            for s in sockets:
                s.close()
            server.close()
    (few, small), (many, large) = sizes.items()
    return value((large - small) / (many - few), "KiB", note=f"{many - few} exports")


def importing(bench, servers):
    """MB/s of data that is not zero, on all cores and on one."""
    found = {}
    for server in servers:
        if server.name not in ("gild", "qemu-nbd"):
            continue
        for cores, prefix in (("", ()), ("one core", ("taskset", "-c", "0"))):
            folder = os.path.join(bench.work, "import")
            shutil.rmtree(folder, ignore_errors=True)
            os.makedirs(folder)
            start = time.monotonic()
            if server.name == "gild":
                store = os.path.join(folder, "store")
                server.gild("store", "init", store=store)
                start = time.monotonic()
                server.gild("image", "import", "base", bench.image, store=store, prefix=prefix)
            else:
                run(*prefix, "qemu-img", "convert", "-c", "-O", "qcow2", "-o",
                    "compression_type=zstd", bench.image, os.path.join(folder, "out.qcow2"))
            took = time.monotonic() - start
            shutil.rmtree(folder)
            speed = value(bench.data_bytes / 1e6 / took, "MB/s")
            if cores:
                found[server.name]["one_core"] = speed["value"]
            else:
                found[server.name] = speed
    if "qemu-nbd" in found:
        found["qemu-nbd"]["note"] = "qemu-img convert -c, zstd, not synced"
    return found


def device(bench, seconds):
    """The device's own flushed write: on a fully written file of the same file system."""
    path = os.path.join(bench.work, "device.bin")
    common = ["fio", "--name=d", "--filename=" + path, "--size=512m", "--output-format=json"]
    run(*common, "--rw=write", "--bs=1m", "--end_fsync=1")
    try:
        told = json.loads(run(*common, "--rw=randwrite", "--bs=4k", "--iodepth=1", "--direct=1",
                              "--fdatasync=1", "--runtime=" + str(seconds), "--time_based",
                              timeout=seconds + 120))
        return value(told["jobs"][0]["write"]["iops"], "ops/s")
    finally:
        os.unlink(path)


def mallocs(bench, server):
    """Heap allocations of the daemon for each cached 4 KiB read."""
    counter = os.path.join(bench.work, "mallocs")
    server.prepare()
    server.environment = dict(os.environ, LD_PRELOAD=bench.tool("malloc_count.so"),
                              MALLOC_COUNT_FILE=counter)
    try:
        targets = server.open(1)
        client(bench, "read4k", targets, seconds=1)
        with open(counter, "rb") as file, mmap.mmap(file.fileno(), 4096, prot=mmap.PROT_READ) as map_:
            before = struct.unpack_from("<Q", map_)[0]
            told = client(bench, "read4k", targets, seconds=2, warm=0)
            after = struct.unpack_from("<Q", map_)[0]
    finally:
        server.close()
        server.environment = None
        if os.path.exists(counter):
            os.unlink(counter)
    return value((after - before) / told["operations"], "mallocs/read",
                 counted=after - before, reads=told["operations"])
