"""The image in containers as deploy/ describes them: what they are allowed is taken from there, and is enough.

The agent's container is on the node's network, with NET_ADMIN alone, a file system that nobody can write, containerd's default
seccomp profile, and `/proc/sys` read-only. Its nodes are in a file; Kubernetes itself is the affair of tests/e2e.
"""

import json
import os
import pathlib
import subprocess
import tarfile
import threading
import time

import machine
import node
import yaml
from containerd import Containerd
from machine import ip, run

# Read before `prepare` hides /var/lib, where the repository may lie.
ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
DEPLOY = {name: list(yaml.safe_load_all((ROOT / "deploy" / name).read_text())) for name in ("podspan.yaml", "uninstall.yaml")}
# What containerd gives a container that asks for nothing, as it is named in `ctr`.
DEFAULT_CAPABILITIES = (
    "CHOWN DAC_OVERRIDE FSETID FOWNER MKNOD NET_RAW SETGID SETUID SETFCAP SETPCAP NET_BIND_SERVICE SYS_CHROOT KILL AUDIT_WRITE"
).split()
IMAGE = next(
    each["spec"]["template"]["spec"]["containers"][0]["image"] for each in DEPLOY["podspan.yaml"] if each["kind"] == "DaemonSet"
)
# The directories of the host that the containers have, instead of those of the machine.
HOST = node.HOME / "host"
AGENT_TOML = """
node = "node1"
nodes_file = "/etc/podspan/nodes.toml"
proc_sys = "/host/proc/sys"
"""
NODES_TOML = """
[[nodes]]
name = "node1"
addresses = ["192.0.2.1", "2001:db8::1"]
pod_cidrs = ["10.244.1.0/24", "fd00:10:244:1::/64"]
[[nodes]]
name = "node2"
addresses = ["192.0.2.2", "2001:db8::2"]
pod_cidrs = ["10.244.2.0/24", "fd00:10:244:2::/64"]
"""
FORWARDING = [pathlib.Path(f"/proc/sys/net/{key}") for key in ("ipv4/ip_forward", "ipv6/conf/all/forwarding")]


def setUpModule():
    global containerd
    containerd = Containerd("image", node.PLUGINS)
    (HOST / "etc/podspan").mkdir(parents=True)
    (HOST / "etc/podspan/agent.toml").write_text(AGENT_TOML)
    (HOST / "etc/podspan/nodes.toml").write_text(NODES_TOML)
    global archive
    archive = node.write_podspan_image("podspan.tar")
    ctr("images", "import", "--snapshotter", "native", archive)


def tearDownModule():
    containerd.kill()


def ctr(*words):
    return run(["ctr", "--address", containerd.socket, "--namespace", "k8s.io", *words])


class Container:
    """A container of a DaemonSet, as its manifest has it but for the volumes that are the API server's."""

    def __init__(self, manifest, name):
        daemon_set = next(each for each in DEPLOY[manifest] if each and each["kind"] == "DaemonSet")
        pod = daemon_set["spec"]["template"]["spec"]
        assert pod["hostNetwork"]
        self.spec = next(each for each in pod.get("initContainers", []) + pod["containers"] if each["name"] == name)
        paths = {volume["name"]: volume["hostPath"]["path"] for volume in pod["volumes"] if "hostPath" in volume}
        self.paths = paths | {"config": "/etc/podspan"}

    def words(self, add=(), drop=()):
        context = self.spec["securityContext"]
        assert context["capabilities"]["drop"] == ["ALL"] and not context["allowPrivilegeEscalation"]
        words = ["run", "--snapshotter", "native", "--net-host", "--seccomp", "--cgroup", f"{node.CGROUP}/image"]
        words += ["--read-only"] if context["readOnlyRootFilesystem"] else []
        for capability in DEFAULT_CAPABILITIES:
            words += ["--cap-drop", f"CAP_{capability}"]
        for capability in set(context["capabilities"].get("add", [])) - set(drop) | set(add):
            words += ["--cap-add", f"CAP_{capability}"]
        for mount in self.spec["volumeMounts"]:
            path = pathlib.Path(self.paths[mount["name"]])
            # The kernel's own is the node's already: this is its network namespace.
            source = path if path.is_relative_to("/proc") else HOST / path.relative_to("/")
            source.mkdir(parents=True, exist_ok=True)
            how = "ro" if mount.get("readOnly") else "rw"
            words += ["--mount", f"type=bind,src={source},dst={mount['mountPath']},options=rbind:{how}"]
        return words

    def command(self):
        return self.spec.get("command") or ["/podspan", *self.spec["args"]]

    def run(self, **capabilities):
        """What it printed, when it has ended well."""
        return ctr(*self.words(**capabilities), "--rm", IMAGE, self.spec["name"], *self.command())

    def start(self, **capabilities):
        words = [*self.words(**capabilities), "--rm", IMAGE, self.spec["name"], *self.command()]
        return Running(self.spec["name"], words)


class Running:
    def __init__(self, name, words):
        self.name = name
        self.log = open(os.memfd_create("log"), "w+")
        command = ["ctr", "--address", containerd.socket, "--namespace", "k8s.io", *words]
        self.process = subprocess.Popen(list(map(str, command)), stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log)

    def __enter__(self):
        deadline = time.monotonic() + machine.PATIENCE
        while not self.is_running():
            assert time.monotonic() < deadline, f"{self.name} does not start\n{self.said()}"
            time.sleep(0.02)
        return self

    def is_running(self):
        tasks = [line.split() for line in ctr("tasks", "list").splitlines()]
        return any(task[0] == self.name and task[-1] == "RUNNING" for task in tasks)

    def __exit__(self, *_):
        try:
            ctr("tasks", "kill", "--signal", "SIGTERM", self.name)
        finally:
            self.process.wait(machine.PATIENCE)

    def said(self):
        return os.pread(self.log.fileno(), 1 << 20, 0).decode()


class Image(node.Case):
    def setUp(self):
        self.before = [path.read_text() for path in FORWARDING]
        for path in FORWARDING:
            path.write_text("0")

    def tearDown(self):
        for path, value in zip(FORWARDING, self.before):
            path.write_text(value)
        super().tearDown()

    def test_the_same_executables_make_the_same_bytes(self):
        first, second = (path.read_bytes() for path in (archive, node.write_podspan_image("again.tar")))
        self.assertEqual(first, second)

    def test_it_holds_two_static_executables_and_nothing_else(self):
        with tarfile.open(archive) as image:
            index = json.load(image.extractfile("index.json"))
            blob = lambda described: image.extractfile("blobs/" + described["digest"].replace(":", "/"))
            manifest = json.load(blob(index["manifests"][0]))
            with tarfile.open(fileobj=blob(manifest["layers"][0])) as layer:
                files = [(each.name, oct(each.mode), each.uid, each.gid, each.mtime) for each in layer.getmembers()]
            labels = json.load(blob(manifest["config"]))["config"]["Labels"]
        self.assertEqual(files, [(name, "0o755", 0, 0, 0) for name in ("podspan", "podspan-cni")])
        self.assertEqual(labels["org.opencontainers.image.licenses"], "Apache-2.0")
        self.assertEqual(f"podspan {labels['org.opencontainers.image.version']}", self.version())

    def version(self):
        return ctr("run", "--rm", "--snapshotter", "native", "--cgroup", f"{node.CGROUP}/image", IMAGE, "version",
                   "/podspan", "--version").strip()

    def test_podman_runs_it_too(self):
        podman = ["podman", "--root", node.HOME / "podman", "--runroot", node.HOME / "podman-run",
                  "--storage-driver", "vfs", "--cgroup-manager", "cgroupfs"]
        run([*podman, "load", "--input", archive])
        said = run([*podman, "run", "--rm", "--network", "none", "--cgroup-parent", node.CGROUP, "--pull", "never", IMAGE,
                    "--version"])
        self.assertEqual(said.strip(), self.version())

    def test_the_node_becomes_right_and_clean_again_with_what_the_manifests_allow(self):
        foreign = HOST / "opt/cni/bin/bridge"
        foreign.parent.mkdir(parents=True, exist_ok=True)
        foreign.write_text("somebody else's")
        Container("podspan.yaml", "install").run()
        version = run(["env", "CNI_COMMAND=VERSION", HOST / "opt/cni/bin/podspan-cni"])
        self.assertIn("1.1.0", json.loads(version)["supportedVersions"])
        self.assertEqual(os.readlink(HOST / "opt/cni/bin/loopback"), "podspan-cni")

        conflist = HOST / "etc/cni/net.d/10-podspan.conflist"
        with Container("podspan.yaml", "agent").start() as agent:
            self.assert_soon(conflist.exists, f"a conflist; the agent said\n{agent.said()}")
            self.assertEqual(machine.addresses("podspan0"), ["10.244.1.1", "fd00:10:244:1::1"])
            self.assertEqual(ip("route show proto 112")[0]["gateway"], "192.0.2.2")
            self.assertEqual(ip("-6 route show proto 112")[0]["gateway"], "2001:db8::2")
            self.assertEqual([path.read_text() for path in FORWARDING], ["1\n", "1\n"])
            accept_ra = pathlib.Path("/proc/sys/net/ipv6/conf/podspan0/accept_ra")
            self.assertEqual(accept_ra.read_text(), "0\n")
            # What somebody else changes is mended: it sees the kernel's events, too.
            run("ip route del 10.244.2.0/24")
            self.assert_soon(lambda: ip("route show 10.244.2.0/24"), "the route is back")
            self.assertNotIn("refused", agent.said())
            self.assertNotIn("denied", agent.said())
            self.assertNotIn("not permitted", agent.said())
        self.assertIn("the network stays as it is", agent.said())
        self.assertIn("podspan0", machine.links())

        Container("uninstall.yaml", "cleanup").run()
        with Container("uninstall.yaml", "clean").start():
            self.assertNotIn("podspan0", machine.links())
        self.assertEqual(ip("route show proto 112"), [])
        self.assertFalse(conflist.exists())
        self.assertEqual([path.name for path in foreign.parent.iterdir()], ["bridge"])
        self.assertEqual(foreign.read_text(), "somebody else's")
        self.assertEqual(list((HOST / "run/podspan").iterdir()), [])

    def test_without_its_capability_it_could_not(self):
        with Container("podspan.yaml", "agent").start(drop=["NET_ADMIN"]) as agent:
            self.assert_soon(lambda: "EPERM" in agent.said(), "it is told")
        self.assertNotIn("podspan0", machine.links())

    def test_its_own_proc_sys_is_read_only(self):
        """The parameters are written elsewhere for a reason."""
        config = HOST / "etc/podspan/agent.toml"
        config.write_text(AGENT_TOML.replace("proc_sys", "# proc_sys"))
        try:
            with Container("podspan.yaml", "agent").start() as agent:
                self.assert_soon(lambda: "EROFS" in agent.said(), "it is told")
            Container("uninstall.yaml", "cleanup").run()
        finally:
            config.write_text(AGENT_TOML)

    def test_the_plugin_is_upgraded_and_downgraded_under_pods_that_come_and_go(self):
        """Two versions take turns in the directory that pods are started from: no file is ever half, busy or missing."""
        directory, other = node.HOME / "turns", node.HOME / "other"
        directory.mkdir(), other.mkdir()
        # Another version as far as the file system knows: an executable may have anything behind its end.
        (other / "podspan-cni").write_bytes((node.PLUGINS / "podspan-cni").read_bytes() + b"another")
        (other / "podspan-cni").chmod(0o755)
        versions = [node.PLUGINS / "podspan-cni", other / "podspan-cni"]
        run([versions[0], "install", directory])
        failed, installed, done = [], [], threading.Event()

        def take_turns():
            while not done.is_set():
                try:
                    run([versions[len(installed) % 2], "install", directory])
                except AssertionError as error:
                    failed.append(error)
                installed.append(True)

        conflist = {"cniVersion": "1.0.0", "name": "turns", "type": "podspan-cni", "bridge": "turns0",
                    "ipam": {"subnet": "10.244.9.0/24", "dataDir": str(node.HOME / "turns-ipam")}}
        run("ip netns add turns")
        installer = threading.Thread(target=take_turns)
        installer.start()
        try:
            for number in range(100):
                for command in ("ADD", "DEL"):
                    environment = {"CNI_COMMAND": command, "CNI_CONTAINERID": f"c{number}", "CNI_IFNAME": "eth0",
                                   "CNI_NETNS": "/run/netns/turns", "CNI_PATH": str(directory)}
                    plugin = subprocess.run(directory / "podspan-cni", input=json.dumps(conflist), env=environment,
                                            capture_output=True, text=True)
                    self.assertEqual(plugin.returncode, 0, plugin.stdout + plugin.stderr)
        finally:
            done.set()
            installer.join()
            run("ip netns del turns")
            run("ip link del turns0")
        self.assertEqual(failed, [])
        self.assertGreater(len(installed), 10)
