"""A node of the cluster: a machine out of namespaces with containerd, kubelet and kube-proxy, which can lose its power.

It has a PID namespace, so that its death is that of its PID 1 and takes every process with it, and with them its network.
What it wrote to its disk is there when it is powered on again; /run, /tmp, processes, network and cgroups are new.
"""

import json
import os
import pathlib
import shutil
import signal
import subprocess

import cri
import isolation
import machine
from control_plane import Daemon
from kube import wait_for

HERE = pathlib.Path(__file__).resolve().parent
UPLINK = "eth0"
MTU = 1500
ROUTER_ADDRESSES = ["192.168.1.1", "fd00:192:168:1::1"]
CONTAINERD_SOCKET = "/run/containerd/containerd.sock"
STATIC_PODS = "/etc/kubernetes/manifests"
# What a real node's Debian package brings, less what namespaces cannot have.
CONTAINERD = f"""
version = 2
[grpc]
  address = "{CONTAINERD_SOCKET}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "pause.test/pause:1"
  disable_apparmor = true
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    max_conf_num = 1
"""


class Node:
    """node1 has number 1, and 192.168.1.11."""

    def __init__(self, number, home, kubernetes):
        self.name = f"node{number}"
        self.addresses = [f"192.168.1.{10 + number}", f"fd00:192:168:1::{10 + number}"]
        self.mac = f"02:00:c0:a8:01:{10 + number:02x}"
        self.home = home / self.name
        self.home.mkdir(parents=True)
        self.kubernetes = kubernetes
        self.daemons = {}
        self.cgroup = f"{os.environ[isolation.CGROUP]}/{self.name}"

    def power_on(self):
        """The machine and its uplink, as an installer leaves it; nothing of Kubernetes runs."""
        namespaces = ["--mount", "--net", "--uts", "--ipc", "--pid", "--fork", "--kill-child"]
        self.shell = subprocess.Popen(
            ["unshare", *namespaces, HERE / "node-init", self.name, self.home, self.kubernetes],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
        if self.shell.stdout.readline() != "ready\n":
            raise AssertionError(f"{self.name} does not start: {HERE}/node-init says why")
        self.pid = child_of(self.shell.pid)
        self.netns = f"/proc/{self.pid}/ns/net"
        self.plug()
        make_cgroups(self.cgroup)
        machine.within(self.netns, machine.add_what_is_foreign)

    def plug(self):
        """The cable from the switch, which is this namespace's bridge, to the node's uplink, whose MAC address stays."""
        uplink = f"{UPLINK} address {self.mac} mtu {MTU} netns {self.pid}"
        machine.run(f"ip link add {self.name} mtu {MTU} type veth peer name {uplink}")
        machine.run(f"ip link set {self.name} master underlay up")
        for command in [
            *(f"ip addr add {address}/{length} dev {UPLINK}{nodad}" for address, length, nodad in
              zip(self.addresses, (24, 64), ("", " nodad"))),
            f"ip link set {UPLINK} up",
            *(f"ip {'-6 ' if ':' in router else ''}route add default via {router}" for router in ROUTER_ADDRESSES),
        ]:
            machine.within(self.netns, lambda: machine.run(command))

    def power_off(self):
        """As by a cut cable: nothing is told to end."""
        self.shell.kill()
        self.shell.wait()
        wait_for(lambda: not pathlib.Path(f"/proc/{self.pid}").exists(), f"{self.name} is dead")
        self.shell.stdout.close()
        self.daemons.clear()
        # Its network goes in the background, and the name of the cable's end with it.
        wait_for(lambda: self.name not in machine.links(), f"the cable of {self.name} is gone")
        isolation.remove_cgroups(self.cgroup)

    def path(self, path):
        """A file of the node, as seen from here."""
        return pathlib.Path(f"/proc/{self.pid}/root") / path.lstrip("/")

    def enter(self, *command):
        return ["nsenter", "--target", str(self.pid), "--mount", "--net", "--uts", "--ipc", "--pid", *map(str, command)]

    def run(self, command):
        """A command's output on the node; fails with all that it said."""
        return machine.run(self.enter(*(command.split() if isinstance(command, str) else command)))

    def start(self, name, *command):
        """A daemon, which ends with the node."""
        self.daemons[name] = NodeDaemon(self.home, name, self.enter(*command))
        return self.daemons[name]

    def start_containerd(self, images=()):
        self.path("/etc/containerd").mkdir(exist_ok=True)
        self.path("/etc/containerd/e2e.toml").write_text(CONTAINERD)
        self.path(CONTAINERD_SOCKET).unlink(missing_ok=True)
        self.start("containerd", "containerd", "--config", "/etc/containerd/e2e.toml")
        self.daemons["containerd"].wait_until(self.path(CONTAINERD_SOCKET).exists, "listening")
        self.client = cri.Client(self.path(CONTAINERD_SOCKET))
        wait_for(self.containerd_answers, f"containerd of {self.name} answers", self.daemons["containerd"].last_words)
        for image in images:
            self.load(image)

    def containerd_answers(self):
        try:
            return self.client.Version()
        except AssertionError:
            # It listens before it is ready, and says so.
            return None

    def load(self, archive):
        """An OCI archive into containerd's store, under the name that it bears."""
        place = self.path("/tmp/image.tar")
        shutil.copy(archive, place)
        self.run("ctr --namespace k8s.io images import /tmp/image.tar")
        place.unlink()

    def start_kubelet(self, kubeconfig):
        shutil.copy(kubeconfig, self.path("/etc/kubelet.kubeconfig"))
        self.path("/etc/kubelet.json").write_text(json.dumps(self.kubelet_configuration()))
        self.path(STATIC_PODS).mkdir(parents=True, exist_ok=True)
        self.start("kubelet", "/opt/kubernetes/kubelet", "--config=/etc/kubelet.json",
                   "--kubeconfig=/etc/kubelet.kubeconfig", f"--hostname-override={self.name}",
                   f"--node-ip={','.join(self.addresses)}")

    def kubelet_configuration(self):
        return {
            "apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
            "containerRuntimeEndpoint": f"unix://{CONTAINERD_SOCKET}",
            "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}},
            "authorization": {"mode": "AlwaysAllow"},
            "cgroupDriver": "cgroupfs", "cgroupRoot": f"/{self.cgroup}", "enforceNodeAllocatable": [],
            "failCgroupV1": False, "failSwapOn": False, "localStorageCapacityIsolation": False,
            "evictionHard": {"memory.available": "0%", "nodefs.available": "0%", "imagefs.available": "0%"},
            "imageGCHighThresholdPercent": 100, "serializeImagePulls": False, "resolvConf": "",
            "staticPodPath": STATIC_PODS, "fileCheckFrequency": "1s",
            "volumePluginDir": "/var/lib/kubelet/volume-plugins",
            "kubeAPIQPS": 100, "kubeAPIBurst": 200, "eventRecordQPS": 100, "eventBurst": 200,
            # A test kills agents more often than a crash loop is granted.
            "crashLoopBackOff": {"maxContainerRestartPeriod": "1s"},
            "nodeStatusUpdateFrequency": "4s", "nodeLeaseDurationSeconds": 16,
        }

    def start_kube_proxy(self, kubeconfig, mode, cluster_cidrs):
        shutil.copy(kubeconfig, self.path("/etc/kube-proxy.kubeconfig"))
        # What is not the node's but the machine's (the size of conntrack's table) is left alone.
        self.path("/etc/kube-proxy.json").write_text(json.dumps({
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration", "mode": mode,
            "clientConnection": {"kubeconfig": "/etc/kube-proxy.kubeconfig"},
            "hostnameOverride": self.name, "clusterCIDR": cluster_cidrs, "detectLocalMode": "ClusterCIDR",
            "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
        }))
        self.start("kube-proxy", "/opt/kubernetes/kube-proxy", "--config=/etc/kube-proxy.json")

    def sandbox(self, pod_name):
        """containerd's id of the running sandbox of a pod, or none."""
        running = [each.id for each in self.client.ListPodSandbox().items
                   if each.metadata.name == pod_name and each.state == 0]
        return running[0] if running else None

    def sandbox_addresses(self, sandbox):
        """As CRI says them, IPv4 first."""
        network = self.client.PodSandboxStatus(pod_sandbox_id=sandbox).status.network
        return [network.ip, *(each.ip for each in network.additional_ips)]

    def sandbox_netns(self, sandbox):
        """The sandbox's network namespace, as a path here."""
        info = json.loads(self.client.PodSandboxStatus(pod_sandbox_id=sandbox, verbose=True).info["info"])
        paths = [each.get("path") for each in info["runtimeSpec"]["linux"]["namespaces"] if each["type"] == "network"]
        # What is a link on the node, such as /var/run, would be followed on this side.
        return self.path(paths[0].removeprefix("/var")) if paths and paths[0] else self.netns

    def set_static_pod(self, name, document):
        """A pod that the kubelet runs from a file; none ends it, if it is there."""
        place = self.path(STATIC_PODS) / f"{name}.json"
        if document is None:
            return place.unlink(missing_ok=True)
        draft = place.with_name(f".{name}")
        draft.write_text(json.dumps({"apiVersion": "v1"} | document))
        draft.rename(place)


class NodeDaemon(Daemon):
    """Through nsenter, which waits for its one child: the daemon. It ends with the node."""

    ends_with_its_starter = False

    def kill(self, how=signal.SIGKILL):
        os.kill(child_of(self.process.pid), how)
        self.process.wait()


def child_of(pid):
    """The only child of a process that was just started, once there is one."""
    children = pathlib.Path(f"/proc/{pid}/task/{pid}/children")
    return int(wait_for(lambda: children.read_text().split(), f"process {pid} has a child")[0])


def make_cgroups(name):
    """In each hierarchy of version 1, with the processors and the memory of the whole machine."""
    hierarchies = [each for each in isolation.CGROUPS.iterdir() if (each / "tasks").exists()]
    if not hierarchies:
        raise AssertionError(f"{isolation.CGROUPS} has no hierarchy of version 1, which this kubelet is configured for")
    for hierarchy in hierarchies:
        (hierarchy / name).mkdir(parents=True, exist_ok=True)
    cpuset = isolation.CGROUPS / "cpuset"
    for directory in [cpuset / name.split("/")[0], cpuset / name]:
        for file in ("cpuset.cpus", "cpuset.mems"):
            (directory / file).write_text((cpuset / file).read_text())
