#!/usr/bin/python3
"""A real Kubernetes API on one address: etcd and kube-apiserver, and where asked for the controllers and the scheduler.

    tests/e2e/control_plane.py [--address 127.0.0.1] [--port 6443] [--netns PATH] [--home DIRECTORY]
        [--controller-manager] [--scheduler] [--cluster-cidr CIDR,CIDR] [--service-cidr CIDR,CIDR]
        [--node NAME …] [--user NAME[,GROUP …] …] [-- FLAG OF KUBE-APISERVER …]

It runs in the caller's network namespace, or in the one at `--netns`; `lo` is up there. All files are below one directory,
made for it and removed in the end, or `--home`, which stays. When the API server is ready, one line of JSON on standard
output says where everything is:

    {"server": "https://127.0.0.1:6443", "ca": "…/ca.crt", "home": "…", "kubernetes": "…/.tools/kubernetes/v…",
     "kubeconfigs": {"admin": "…/admin.kubeconfig", "system:node:node1": "…", …}}

`admin` is in `system:masters`; `--node node1` adds the user `system:node:node1` in `system:nodes`; `--user` any other, such
as `system:serviceaccount:kube-system:podspan,system:serviceaccounts`.

Standard input is the hand that holds it: `kill` ends the API server alone as a crash does and answers `killed`; `start`
starts it again and answers `ready`. When standard input is closed, as by the death of whoever held it, all ends.

What would surprise: the executables are those that `make kubernetes` built, or in the directory that the environment's
PODSPAN_KUBERNETES names. It lies in memory, so that etcd waits for no disk, and nothing of it is secret.
"""

import argparse
import base64
import contextlib
import ctypes
import fcntl
import json
import os
import pathlib
import re
import secrets
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.request

HERE = pathlib.Path(__file__).resolve().parent
# How long anything may take before it counts as hanging, in seconds: a cold API server on a busy machine took 40.
PATIENCE = 180
CLONE_NEWNET = 0x40000000
LIBC = ctypes.CDLL(None, use_errno=True)
SERVICE_CIDRS = "10.96.0.0/16,fd00:10:96::/112"
CLUSTER_CIDRS = "10.244.0.0/16,fd00:10:244::/48"
ADMIN = "admin"


def kubernetes_version():
    """As `go.mod` pins it."""
    return re.search(r"k8s\.io/kubernetes (v\S+)", (HERE / "go.mod").read_text())[1]


def kubernetes():
    """The directory of Kubernetes's executables."""
    built = HERE.parent.parent / ".tools/kubernetes" / kubernetes_version()
    directory = pathlib.Path(os.environ.get("PODSPAN_KUBERNETES", built)).resolve()
    if not (directory / "kube-apiserver").exists():
        sys.exit(f"{directory}/kube-apiserver is missing: make kubernetes")
    return directory


def enter_network(path):
    """This process and its children are in that network namespace from now on."""
    with open(path) as namespace:
        if LIBC.setns(namespace.fileno(), CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(path))


class Daemon:
    """A process and its log."""

    # It ends with the thread that started it, however that ends.
    ends_with_its_starter = True

    def __init__(self, home, name, command):
        self.name = name
        self.log = home / "log" / f"{name}.log"
        self.log.parent.mkdir(exist_ok=True)

        def prepare():
            PR_SET_PDEATHSIG = 1
            if self.ends_with_its_starter:
                LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)

        with open(self.log, "ab") as log:
            words = [str(word) for word in command]
            self.process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/", start_new_session=True,
                preexec_fn=prepare)

    def kill(self, how=signal.SIGKILL):
        self.process.send_signal(how)
        self.process.wait(PATIENCE)

    def wait_until(self, predicate, what):
        """Fails with the end of the log when the process ends before, or hangs."""
        deadline = time.monotonic() + PATIENCE
        while not predicate():
            if self.process.poll() is not None:
                raise AssertionError(f"{self.name} ended with {self.process.returncode}, not {what}\n{self.last_words()}")
            if time.monotonic() > deadline:
                raise AssertionError(f"{self.name}: not within {PATIENCE} s: {what}\n{self.last_words()}")
            time.sleep(0.1)

    def last_words(self, lines=20):
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


class ControlPlane:
    """The processes, each in `self.daemons` by its name."""

    def __init__(self, home, address="127.0.0.1", port=6443, flags=(), service_cidrs=SERVICE_CIDRS):
        self.home = pathlib.Path(home)
        self.address, self.port, self.flags, self.service_cidrs = address, port, list(flags), service_cidrs
        self.server = f"https://{f'[{address}]' if ':' in address else address}:{port}"
        self.kubernetes = kubernetes()
        self.users = {}
        self.daemons = {}
        self.has_controllers = False
        self.add_user(ADMIN, "system:masters")

    def add_user(self, name, *groups):
        """Before the API server is started; its kubeconfig is there at once."""
        self.users[name] = (secrets.token_hex(16), groups)

    def add_node(self, name):
        self.add_user(f"system:node:{name}", "system:nodes")

    def kubeconfig(self, user=ADMIN):
        return self.home / f"{user}.kubeconfig"

    def start(self):
        """etcd and the API server."""
        self.write_certificates()
        self.write_users()
        self.start_etcd()
        self.start_api_server()

    def write_certificates(self):
        openssl = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-noenc",
                   "-sha256", "-days", "30"]
        host = "IP" if re.fullmatch(r"[0-9.]+|.*:.*", self.address) else "DNS"
        service = self.service_cidrs.split(",")[0].split("/")[0]
        first = re.sub(r"\d+$", lambda last: str(int(last[0]) + 1), service) if "." in service else f"{service}1"
        names = f"{host}:{self.address},IP:127.0.0.1,IP:{first},DNS:kubernetes.default.svc,DNS:localhost"
        self.openssl(*openssl, "-subj", "/CN=podspan-e2e-ca", "-keyout", "ca.key", "-out", "ca.crt",
                     "-addext", "keyUsage=critical,keyCertSign")
        self.openssl(*openssl, "-subj", "/CN=kube-apiserver", "-keyout", "apiserver.key", "-out", "apiserver.crt",
                     "-CA", "ca.crt", "-CAkey", "ca.key", "-addext", f"subjectAltName={names}",
                     "-addext", "basicConstraints=critical,CA:FALSE", "-addext", "extendedKeyUsage=serverAuth")
        self.openssl("openssl", "genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048",
                     "-out", "service-account.key")

    def openssl(self, *command):
        done = subprocess.run(command, cwd=self.home, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        if done.returncode != 0:
            raise AssertionError(f"{' '.join(command)}\n{done.stderr}")

    def write_users(self):
        lines = [f'{token},{name},{name},"{",".join(groups)}"\n' for name, (token, groups) in self.users.items()]
        (self.home / "tokens.csv").write_text("".join(lines))
        ca = base64.b64encode((self.home / "ca.crt").read_bytes()).decode()
        for name, (token, _) in self.users.items():
            # JSON is YAML.
            self.kubeconfig(name).write_text(json.dumps({
                "apiVersion": "v1", "kind": "Config", "current-context": "e2e",
                "clusters": [{"name": "e2e", "cluster": {"server": self.server, "certificate-authority-data": ca}}],
                "users": [{"name": name, "user": {"token": token}}],
                "contexts": [{"name": "e2e", "context": {"cluster": "e2e", "user": name}}],
            }))

    def start_etcd(self):
        client, peer = (f"http://127.0.0.1:{self.port + offset}" for offset in (1, 2))
        flags = {"data-dir": self.home / "etcd", "listen-client-urls": client, "advertise-client-urls": client,
                 "listen-peer-urls": peer, "initial-advertise-peer-urls": peer, "initial-cluster": f"default={peer}"}
        etcd = self.daemon("etcd", ["etcd", *as_words(flags)])

        def is_healthy():
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{client}/health", timeout=2) as answer:
                return json.load(answer)["health"] == "true"

        etcd.wait_until(is_healthy, "healthy")

    def start_api_server(self):
        keys = self.home / "service-account.key"
        flags = {
            "etcd-servers": f"http://127.0.0.1:{self.port + 1}",
            "bind-address": self.address,
            "advertise-address": self.address,
            "secure-port": self.port,
            "tls-cert-file": self.home / "apiserver.crt",
            "tls-private-key-file": self.home / "apiserver.key",
            "client-ca-file": self.home / "ca.crt",
            "token-auth-file": self.home / "tokens.csv",
            "authorization-mode": "Node,RBAC",
            "service-cluster-ip-range": self.service_cidrs,
            "service-account-issuer": "https://kubernetes.default.svc",
            "service-account-key-file": keys,
            "service-account-signing-key-file": keys,
            "allow-privileged": "true",
            "kubelet-preferred-address-types": "InternalIP",
            # Loopback cannot be an endpoint of the Service `kubernetes`.
            "endpoint-reconciler-type": "none" if self.address in ("127.0.0.1", "::1") else "lease",
        }
        if not self.has_controllers:
            # Nobody makes the service account that every pod would need.
            flags["disable-admission-plugins"] = "ServiceAccount"
        server = self.daemon("kube-apiserver", [self.kubernetes / "kube-apiserver", *as_words(flags), *self.flags])
        server.wait_until(self.is_ready, "ready")

    def is_ready(self):
        try:
            return self.get("/readyz") == b"ok" and bool(self.get("/api/v1/namespaces/default"))
        except OSError:
            return False

    def get(self, path):
        request = urllib.request.Request(self.server + path, headers={"Authorization": f"Bearer {self.users[ADMIN][0]}"})
        context = ssl.create_default_context(cafile=self.home / "ca.crt")
        with urllib.request.urlopen(request, timeout=5, context=context) as answer:
            return answer.read()

    def kill_api_server(self):
        self.daemons["kube-apiserver"].kill()

    def start_controller_manager(self, cluster_cidrs=CLUSTER_CIDRS):
        """Hands out /24 and /64 of the cluster's ranges; none does where there are none."""
        ranges = {"allocate-node-cidrs": "true", "cluster-cidr": cluster_cidrs,
                  "service-cluster-ip-range": self.service_cidrs} if cluster_cidrs else {}
        self.daemon("kube-controller-manager", [self.kubernetes / "kube-controller-manager", *as_words(ranges | {
            "kubeconfig": self.kubeconfig(), "leader-elect": "false", "secure-port": 0,
            "root-ca-file": self.home / "ca.crt",
            "service-account-private-key-file": self.home / "service-account.key",
            # A node that is gone is noticed within seconds, not a minute; endpoints and new nodes at once.
            "node-monitor-period": "1s", "node-monitor-grace-period": "20s", "kube-api-qps": 200, "kube-api-burst": 400,
            "controllers": "*,-node-route-controller,-cloud-node-lifecycle-controller",
        })])

    def start_scheduler(self):
        self.daemon("kube-scheduler", [self.kubernetes / "kube-scheduler", *as_words({
            "kubeconfig": self.kubeconfig(), "leader-elect": "false", "secure-port": 0,
            "kube-api-qps": 200, "kube-api-burst": 400,
        })])

    def daemon(self, name, command):
        self.daemons[name] = Daemon(self.home, name, command)
        return self.daemons[name]

    def stop(self):
        for daemon in reversed(self.daemons.values()):
            daemon.kill()


def as_words(flags):
    return [f"--{name}={value}" for name, value in flags.items()]


@contextlib.contextmanager
def temporary_directory():
    """In memory, so that etcd waits for no disk. What was killed before it could remove its own has no lock on it."""
    shared = pathlib.Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else pathlib.Path(tempfile.gettempdir())
    prefix = "podspan-control-plane-"
    with contextlib.ExitStack() as stack:
        # One at a time: a new directory has no lock yet.
        with lock_of(shared, fcntl.LOCK_EX):
            for left in shared.glob(f"{prefix}*"):
                # Its owner may be just removing it.
                with contextlib.suppress(FileNotFoundError), lock_of(left) as is_dead:
                    if is_dead:
                        shutil.rmtree(left, ignore_errors=True)
            home = stack.enter_context(tempfile.TemporaryDirectory(prefix=prefix, dir=shared))
            stack.enter_context(lock_of(home))
        yield home


@contextlib.contextmanager
def lock_of(directory, kind=fcntl.LOCK_EX | fcntl.LOCK_NB):
    """Held while it is entered, or false."""
    descriptor = os.open(directory, os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, kind)
        yield True
    except BlockingIOError:
        yield False
    finally:
        os.close(descriptor)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--address", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=6443, help="etcd listens on the two after it, on loopback")
    parser.add_argument("--netns", type=pathlib.Path)
    parser.add_argument("--home", type=pathlib.Path)
    parser.add_argument("--controller-manager", action="store_true")
    parser.add_argument("--scheduler", action="store_true")
    parser.add_argument("--cluster-cidr", default=CLUSTER_CIDRS, help="empty: no node is given a subnet")
    parser.add_argument("--service-cidr", default=SERVICE_CIDRS)
    parser.add_argument("--node", action="append", default=[])
    parser.add_argument("--user", action="append", default=[], metavar="NAME[,GROUP…]")
    parser.add_argument("flags", nargs="*", metavar="FLAG")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    if options.home:
        options.home.mkdir(parents=True, exist_ok=True)
        return serve(options, options.home.resolve())
    with temporary_directory() as home:
        return serve(options, pathlib.Path(home))


def serve(options, home):
    if options.netns:
        enter_network(options.netns)
    plane = ControlPlane(home, options.address, options.port, options.flags, options.service_cidr)
    plane.has_controllers = options.controller_manager
    for node in options.node:
        plane.add_node(node)
    for user in options.user:
        plane.add_user(*user.split(","))
    try:
        plane.start()
        if options.controller_manager:
            plane.start_controller_manager(options.cluster_cidr)
        if options.scheduler:
            plane.start_scheduler()
        kubeconfigs = {user: str(plane.kubeconfig(user)) for user in plane.users}
        say(json.dumps({"server": plane.server, "ca": str(home / "ca.crt"), "home": str(home),
                        "kubernetes": str(plane.kubernetes), "kubeconfigs": kubeconfigs}))
        for line in sys.stdin:
            obey(plane, line.strip())
    finally:
        plane.stop()


def obey(plane, command):
    if command == "kill":
        plane.kill_api_server()
        say("killed")
    elif command == "start":
        plane.start_api_server()
        say("ready")
    else:
        raise AssertionError(f"{command!r} is not a command: kill, start")


def say(text):
    print(text, flush=True)


if __name__ == "__main__":
    main()
