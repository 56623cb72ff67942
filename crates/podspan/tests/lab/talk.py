"""A conversation over one TCP connection, in questions of 4,000 bytes that come back.

talk.py serve PORT             answers whoever connects, in both families, until it is killed
talk.py ask ADDRESS PORT N     asks N times, every 10 ms, and tells how many answers came and how long the longest took
"""

import socket
import sys
import threading
import time

SIZE = 4000


def receive(connection):
    got = b""
    while len(got) < SIZE:
        part = connection.recv(SIZE - len(got))
        if not part:
            return None
        got += part
    return got


def answer(connection):
    with connection:
        while question := receive(connection):
            connection.sendall(question)


def serve(port):
    listener = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)
    print("listening", flush=True)
    while True:
        threading.Thread(target=answer, args=[listener.accept()[0]], daemon=True).start()


def ask(address, port, times):
    connection = socket.create_connection((address, port), timeout=30)
    answered, longest = 0, 0.0
    for number in range(times):
        question = number.to_bytes(4, "big") * (SIZE // 4)
        begin = time.monotonic()
        connection.sendall(question)
        answered += receive(connection) == question
        longest = max(longest, time.monotonic() - begin)
        time.sleep(0.01)
    print(f"{times} asked, {answered} answered, the longest after {longest * 1000:.0f} ms")


match sys.argv[1:]:
    case ["serve", port]:
        serve(int(port))
    case ["ask", address, port, times]:
        ask(address, int(port), int(times))
    case _:
        sys.exit(__doc__)
