"""Packets that are counted: numbered datagrams from one namespace to another and back, as long as it is entered."""

import socket
import threading
import time

import machine

# Between two datagrams, in seconds.
INTERVAL = 0.01
# The longest that a datagram may be under way before it counts as lost, in seconds: this is about loss, not about delay.
PATIENCE = 5
PORT = 9


class Traffic:
    """From each pod of a pair to the other's addresses. `lost()` says how many datagrams did not come back."""

    def __init__(self, *pairs):
        self.flows = [Flow(asker.netns, server.netns, address) for asker, server in pairs for address in server.addresses]

    def __enter__(self):
        for flow in self.flows:
            flow.start()
        return self

    def __exit__(self, *_):
        for flow in self.flows:
            flow.is_done.set()
        for flow in self.flows:
            flow.stop()

    def sent(self):
        return sum(flow.sent for flow in self.flows)

    def lost(self):
        return {flow.address: flow.sent - flow.seen for flow in self.flows if flow.sent != flow.seen}


class Flow:
    """One asker, one server, one address."""

    def __init__(self, asker, server, address):
        self.address, self.sent, self.seen, self.is_over = address, 0, 0, False
        self.is_done = threading.Event()
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self.server, self.asker = (
            machine.within(netns, lambda: socket.socket(family, socket.SOCK_DGRAM)) for netns in (server, asker))
        self.server.bind((address, PORT))
        self.asker.connect((address, PORT))
        # So that threads notice their end.
        self.asker.settimeout(0.2)
        self.server.settimeout(0.2)
        self.threads = [threading.Thread(target=each, daemon=True) for each in (self.echo, self.ask, self.count)]

    def start(self):
        for thread in self.threads:
            thread.start()

    def echo(self):
        while not self.is_over:
            try:
                data, asker = self.server.recvfrom(64)
                self.server.sendto(data, asker)
            except OSError:
                # Nothing came, or the way back is gone: what is lost is counted where it was sent.
                pass

    def ask(self):
        while not self.is_done.is_set():
            try:
                self.asker.send(str(self.sent).encode())
            except OSError:
                # Unreachable, or refused: sent and lost.
                pass
            self.sent += 1
            time.sleep(INTERVAL)

    def count(self):
        deadline = None
        while deadline is None or (self.seen < self.sent and time.monotonic() < deadline):
            try:
                self.asker.recv(64)
                self.seen += 1
            except OSError:
                # Nothing, or an error that belongs to a datagram before.
                pass
            if self.is_done.is_set() and deadline is None:
                deadline = time.monotonic() + PATIENCE

    def stop(self):
        for thread in self.threads[1:]:
            thread.join()
        self.is_over = True
        self.threads[0].join()
        self.server.close()
        self.asker.close()
