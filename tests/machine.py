"""What tests do on a machine out of namespaces: run commands, look with `ip -j` and `nft`, ask and answer in any namespace."""

import concurrent.futures
import ctypes
import functools
import json
import os
import socket
import socketserver
import ssl
import subprocess
import threading
import time
import urllib.request

# How long anything may take before it counts as hanging, in seconds.
PATIENCE = 20
LIBC = ctypes.CDLL(None, use_errno=True)
FOREIGN_TABLE = "table inet foreign { chain input { type filter hook input priority 0; policy accept; }; }"


def set_read_only(path, is_read_only):
    """A mount and all below it, in this mount namespace only: mount_setattr(2), which mount(8) of Debian 12 lacks."""
    SYS_MOUNT_SETATTR, AT_FDCWD, AT_RECURSIVE, MOUNT_ATTR_RDONLY = 442, -100, 0x8000, 1
    set_and_clear = (MOUNT_ATTR_RDONLY, 0) if is_read_only else (0, MOUNT_ATTR_RDONLY)
    attributes = (ctypes.c_uint64 * 4)(*set_and_clear)
    size = ctypes.c_size_t(ctypes.sizeof(attributes))
    if LIBC.syscall(SYS_MOUNT_SETATTR, AT_FDCWD, path.encode(), AT_RECURSIVE, attributes, size) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), path)


def add_what_is_foreign():
    """Things of somebody else's that a node may have: nothing here may ever change them."""
    run("ip link add foreign0 up type bridge")
    run("ip addr add 198.51.100.1/24 dev foreign0")
    run("ip link add pod0 type veth peer name pod1")
    run("ip route add 203.0.113.0/24 via 198.51.100.2 proto static")
    restart_firewall()


def restart_firewall():
    """What a restart of nftables.service does: all rules go, whosever they are, and the administrator's come back."""
    run(["nft", f"flush ruleset; {FOREIGN_TABLE}"])


def assert_foreign_is_there(case):
    """Everything of `add_what_is_foreign`, in the test case's words."""
    case.assertEqual(ip("addr show foreign0")[0]["addr_info"][0]["local"], "198.51.100.1")
    case.assertEqual(ip("link show pod0")[0]["ifname"], "pod0")
    case.assertEqual(ip("route show 203.0.113.0/24")[0]["gateway"], "198.51.100.2")
    run("nft list chain inet foreign input")


def run(command):
    """A command's output; fails with all that it said."""
    words = command.split() if isinstance(command, str) else [str(word) for word in command]
    # Files, not pipes: what a runtime leaves running would hold these open.
    with open(os.memfd_create("stdout"), "w+") as stdout, open(os.memfd_create("stderr"), "w+") as stderr:
        process = subprocess.run(words, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, timeout=60)
        stdout.seek(0), stderr.seek(0)
        if process.returncode != 0:
            said = (stdout.read() + stderr.read()).strip()
            raise AssertionError(f"{' '.join(words)}: exit status {process.returncode}\n{said}")
        return stdout.read()


def ip(command, netns=None):
    output = within(netns, lambda: run(f"ip -j {command}"))
    return json.loads(output or "[]")


def links(netns=None):
    return {link["ifname"]: link for link in ip("link show", netns)}


def addresses(interface, netns=None):
    """The global addresses of an interface that are in use, IPv4 first."""
    infos = ip(f"addr show {interface}", netns)[0]["addr_info"]
    return [info["local"] for info in infos if info["scope"] == "global" and not info.get("tentative")]


def ports_of(bridge, netns=None):
    return [name for name, link in links(netns).items() if link.get("master") == bridge]


def addresses_in(directory):
    """Those that have an owner on disk: the files named by an address, sorted."""
    names = [file.name for file in directory.iterdir()] if directory.exists() else []
    return sorted(name for name in names if name.count(".") == 3 or ":" in name)


def within(netns, function):
    """The function's result, from a thread in another network namespace; children of the thread are there too."""
    if netns is None:
        return function()

    def enter_and_call():
        CLONE_NEWNET = 0x40000000
        with open(netns) as namespace:
            if LIBC.setns(namespace.fileno(), CLONE_NEWNET) != 0:
                raise AssertionError(f"enter {netns}: {os.strerror(ctypes.get_errno())}")
        return function()

    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        return thread.submit(enter_and_call).result()


def fetch(address, port=80, netns=None):
    """(who answered, whom they saw), over HTTP, as soon as the server has started."""
    request = functools.partial(within, netns, functools.partial(ask, address, port))
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return request()
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def ask(address, port):
    try:
        with socket.create_connection((address, port), timeout=PATIENCE) as connection:
            connection.sendall(b"GET /cgi-bin/who HTTP/1.0\r\n\r\n")
            answer = b"".join(iter(lambda: connection.recv(4096), b"")).decode()
    except OSError as error:
        raise type(error)(error.errno, f"{error.strerror or error}: {address} port {port}") from None
    name, _, seen = answer.split("\r\n\r\n")[-1].strip().splitlines()[-1].partition(" saw ")
    return name, seen.removeprefix("[").removesuffix("]").removeprefix("::ffff:")


def http(url):
    """The body; the server's certificate is not looked at."""
    with urllib.request.urlopen(url, timeout=PATIENCE, context=ssl._create_unverified_context()) as answer:
        return answer.read().decode()


class Answer(socketserver.BaseRequestHandler):
    """The asker's address."""

    def handle(self):
        answer = self.client_address[0].encode()
        if isinstance(self.request, socket.socket):
            self.request.sendall(answer)
        else:
            self.request[1].sendto(answer, self.client_address)


class Answering:
    """While it is entered: something in a namespace that answers what it hears with the asker's address."""

    def __init__(self, netns, port, kind=socket.SOCK_STREAM):
        class Server({socket.SOCK_STREAM: socketserver.TCPServer, socket.SOCK_DGRAM: socketserver.UDPServer}[kind]):
            address_family = socket.AF_INET6
            allow_reuse_address = True

        self.server = within(netns, lambda: Server(("::", port), Answer))

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, args=(0.01,)).start()

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()


def seen_by(address, port, netns=None, kind=socket.SOCK_STREAM):
    """The asker's address as an `Answering` at that address sees it."""

    def question():
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.socket(family, kind) as connection:
            connection.settimeout(PATIENCE)
            connection.connect((address, port))
            if kind == socket.SOCK_DGRAM:
                connection.send(b"?")
            return connection.recv(64).decode().removeprefix("::ffff:")

    return within(netns, question)
