"""A containerd of the node's, and pod sandboxes asked of it through CRI as a kubelet asks.

The sandbox is the pod: its image is the one that answers over HTTP, so that no container is needed in it.
"""

import json
import subprocess
import time

import cri
import node
from image import IMAGE

CONFIG = """
version = 2
root = "{home}/root"
state = "{home}/state"
disabled_plugins = [
  "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs",
]
[grpc]
  address = "{home}/containerd.sock"
[plugins."io.containerd.internal.v1.opt"]
  path = "{home}/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{image}"
  disable_apparmor = true
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "native"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{plugins}"
    conf_dir = "{home}/net.d"
    max_conf_num = 1
"""


class Containerd:
    """One containerd, with all its files under a directory of its own."""

    def __init__(self, name, plugins):
        self.home = node.HOME / name
        self.conf_dir = self.home / "net.d"
        self.conf_dir.mkdir(parents=True)
        self.log = self.home / "log"
        (self.home / "config.toml").write_text(CONFIG.format(home=self.home, image=IMAGE, plugins=plugins))
        self.socket = self.home / "containerd.sock"
        self.client = cri.Client(self.socket)
        self.start()
        node.run(["ctr", "--address", self.socket, "--namespace", "k8s.io", "images", "import",
                  "--snapshotter", "native", node.IMAGE_ARCHIVE])

    def start(self):
        with open(self.log, "ab") as log:
            command = ["containerd", "--config", self.home / "config.toml"]
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        self.client.Version()

    def kill(self):
        self.process.kill()
        self.process.wait()

    def set_conflist(self, conflist):
        """As the agent does: beside its place under a suffix that is not loaded, then renamed."""
        draft = self.conf_dir / "10-podspan.conflist.podspan.tmp"
        draft.write_text(json.dumps(conflist))
        draft.rename(self.conf_dir / "10-podspan.conflist")
        self.wait_for_conflist(conflist)

    def wait_for_conflist(self, conflist):
        """containerd watches the directory. It does not say when it has seen a change, but its verbose status does."""
        deadline = time.monotonic() + node.PATIENCE
        while self.loaded() != conflist:
            assert time.monotonic() < deadline, f"containerd has {self.loaded()}, not {conflist}"
            time.sleep(0.02)

    def loaded(self):
        info = self.client.Status(verbose=True).info
        networks = json.loads(info["cniconfig"])["Networks"] if "cniconfig" in info else []
        sources = [json.loads(network["Config"]["Source"]) for network in networks if network["IFName"] == "eth0"]
        return sources[0] if sources else None

    def is_network_ready(self):
        conditions = self.client.Status().status.conditions
        return next(condition.status for condition in conditions if condition.type == "NetworkReady")

    def remove_all_sandboxes(self):
        for sandbox in self.client.ListPodSandbox().items:
            self.client.StopPodSandbox(pod_sandbox_id=sandbox.id)
            self.client.RemovePodSandbox(pod_sandbox_id=sandbox.id)


def sandbox_config(name, **more):
    metadata = {"name": name, "namespace": "default", "uid": f"uid-{name}"}
    return {"metadata": metadata, "hostname": name, "linux": {"cgroup_parent": node.CGROUP}} | more


class Pod:
    """A sandbox, seen through CRI and through its process."""

    def __init__(self, client, name, **more):
        self.client = client
        self.name = name
        self.id = client.RunPodSandbox(config=sandbox_config(name, **more)).pod_sandbox_id
        info = json.loads(self.answer(verbose=True).info["info"])
        self.pid = info["pid"]
        namespaces = info["runtimeSpec"]["linux"]["namespaces"]
        self.netns = next(each["path"] for each in namespaces if each["type"] == "network")

    def answer(self, **fields):
        return self.client.PodSandboxStatus(pod_sandbox_id=self.id, **fields)

    def addresses(self):
        """As CRI says them, IPv4 first."""
        network = self.answer().status.network
        return [network.ip, *(each.ip for each in network.additional_ips)]

    def stop(self):
        self.client.StopPodSandbox(pod_sandbox_id=self.id)

    def remove(self):
        self.stop()
        self.client.RemovePodSandbox(pod_sandbox_id=self.id)
