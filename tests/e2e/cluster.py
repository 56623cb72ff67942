"""The cluster: a control plane, a router and three nodes on one switch, and pods on them.

    192.168.1.0/24, fd00:192:168:1::/64:  the bridge `underlay` in the first namespace, whose own address is .254: outside
      .1   router: what the nodes' default routes lead to; 192.0.2.1 and 2001:db8:1::1 are behind it: the internet
      .2   the control plane
      .11  node1, and so on
"""

import concurrent.futures
import json
import pathlib
import subprocess

import image
import machine
from control_plane import CLUSTER_CIDRS
from kube import Api, is_ready, wait_for
from node import MTU, ROUTER_ADDRESSES, Node

HERE = pathlib.Path(__file__).resolve().parent
# All that the tests make is under it, on tmpfs.
HOME = pathlib.Path("/run/e2e")
NODES = 3
PAUSE_IMAGE = "pause.test/pause:1"
CONTROL = "/run/netns/control"
ROUTER = "/run/netns/router"
CONTROL_ADDRESSES = ["192.168.1.2", "fd00:192:168:1::2"]
OUTSIDE_ADDRESSES = ["192.168.1.254", "fd00:192:168:1::fe"]
INTERNET_ADDRESSES = ["192.0.2.1", "2001:db8:1::1"]
PROXY_USER = "system:kube-proxy"


def protect_the_machine():
    """What writes where it should not fails. The nodes have disks of their own."""
    machine.set_read_only("/", True)
    for kernels_own in ("/proc", "/sys"):
        machine.set_read_only(kernels_own, False)
    for directory in ("/run", "/dev/shm"):
        machine.run(f"mount -t tmpfs -o mode=755 tmpfs {directory}")
    pathlib.Path("/run/netns").mkdir()


class Cluster:
    """What the namespaces hold that this is called in."""

    def __init__(self, kubernetes):
        self.home, self.kubernetes = HOME, kubernetes
        self.api_is_there = True
        self.nodes = [Node(number, HOME / "nodes", kubernetes) for number in range(1, NODES + 1)]
        self.proxy_mode = "iptables"
        self.images = []

    def start(self):
        """Until every kubelet has registered its node; none is ready yet, for no pod network is there."""
        self.make_underlay()
        self.make_images()
        with concurrent.futures.ThreadPoolExecutor() as threads:
            booted = [threads.submit(self.boot, node) for node in self.nodes]
            self.start_control_plane()
            for each in booted:
                each.result()
        for node in self.nodes:
            self.start_kubernetes(node)
        for node in self.nodes:
            wait_for(lambda: self.api.read("Node", node.name), f"{node.name} is registered",
                     node.daemons["kubelet"].last_words)

    def make_underlay(self):
        machine.run("ip link set lo up")
        machine.run(f"ip link add underlay mtu {MTU} type bridge")
        for namespace, addresses in (("control", CONTROL_ADDRESSES), ("router", ROUTER_ADDRESSES)):
            machine.run(f"ip netns add {namespace}")
            machine.run(f"ip -n {namespace} link set lo up")
            machine.run(f"ip link add {namespace} type veth peer name eth0 netns {namespace}")
            machine.run(f"ip link set {namespace} master underlay up")
            give_addresses("eth0", addresses, f"-n {namespace}")
        give_addresses("underlay", OUTSIDE_ADDRESSES)
        for address in INTERNET_ADDRESSES:
            machine.run(f"ip -n router addr add {address} dev lo")
            machine.run(f"ip route add {address} via {ROUTER_ADDRESSES[':' in address]}")
        for sysctl in ("net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"):
            machine.within(ROUTER, lambda: machine.run(f"sysctl -q {sysctl}"))

    def make_images(self):
        for name, command in ((image.IMAGE, image.SERVE), (PAUSE_IMAGE, "exec sleep 1000000000")):
            archive = HOME / f"{name.split('.')[0]}.tar"
            image.write_image(archive, name, command)
            self.images.append(archive)

    def start_control_plane(self):
        command = [HERE / "control_plane.py", "--netns", CONTROL, "--home", HOME / "control", "--port", "6443",
                   "--address", CONTROL_ADDRESSES[0], "--controller-manager", "--scheduler",
                   "--user", PROXY_USER,
                   *(word for node in self.nodes for word in ("--node", node.name))]
        self.control = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        line = self.control.stdout.readline()
        if not line:
            raise AssertionError("the control plane did not start, and said why above")
        self.kubeconfigs = (said := json.loads(line))["kubeconfigs"]
        self.api = Api(self.kubeconfigs["admin"], said["ca"])

    def kubectl(self, *words):
        return machine.run([self.kubernetes / "kubectl", "--kubeconfig", self.kubeconfigs["admin"], *words])

    def tell_control_plane(self, command, answer):
        self.control.stdin.write(f"{command}\n")
        self.control.stdin.flush()
        said = self.control.stdout.readline().strip()
        if said != answer:
            raise AssertionError(f"the control plane, told to {command}, said {said!r}, not {answer!r}")

    def kill_api_server(self):
        self.api_is_there = False
        self.tell_control_plane("kill", "killed")

    def start_api_server(self):
        self.tell_control_plane("start", "ready")
        self.api_is_there = True

    def boot(self, node):
        node.power_on()
        node.start_containerd(self.images)

    def boot_again(self, node):
        """The images are on its disk."""
        node.power_on()
        node.start_containerd()

    def start_kubernetes(self, node):
        node.start_kubelet(self.kubeconfigs[f"system:node:{node.name}"])
        node.start_kube_proxy(self.kubeconfigs[PROXY_USER], self.proxy_mode, CLUSTER_CIDRS)

    def set_proxy_mode(self, mode):
        """Every kube-proxy anew, without the rules of the mode before."""
        if mode == self.proxy_mode:
            return
        self.proxy_mode = mode
        for node in self.nodes:
            node.daemons["kube-proxy"].kill()
            node.run("/opt/kubernetes/kube-proxy --cleanup")
            node.start_kube_proxy(self.kubeconfigs[PROXY_USER], mode, CLUSTER_CIDRS)

    def node(self, name):
        return next(node for node in self.nodes if node.name == name)

    def wait_until_ready(self, *nodes):
        for node in nodes or self.nodes:
            wait_for(lambda: is_ready(self.api.read("Node", node.name) or {}), f"{node.name} is Ready",
                     lambda: conditions_of(self.api.read("Node", node.name)))

    def create_pod(self, name, node=None, **more):
        """A pod that says over HTTP on port 80 who it is and whom it saw. `container` adds to its one container."""
        self.api.create(pod_document(name, node, **more))
        return Pod(self, name)

    def pod(self, name):
        """One that somebody else made, ready."""
        return Pod(self, name).wait_until_ready()

    def explain(self):
        """Prints what may tell why something failed."""
        if self.api_is_there:
            self.explain_from_the_api()
        for node in self.nodes:
            for command in ("ip -4 route", "ip -6 route", "ip neigh"):
                print(f"--- {node.name}: {command}", node.run(command), sep="\n")
        # Not below the nodes' disks, where files come and go.
        for log in sorted([*self.home.glob("control/log/*.log"), *self.home.glob("nodes/*/log/*.log")]):
            print(f"--- {log}", *log.read_text(errors="replace").splitlines()[-8:], sep="\n")

    def explain_from_the_api(self):
        for pod in [*self.api.list("Pod"), *self.api.list("Pod", namespace="kube-system")]:
            addresses = [each["ip"] for each in pod["status"].get("podIPs", [])]
            print(pod["metadata"]["name"], pod["spec"].get("nodeName"), pod["status"]["phase"], *addresses, sep="\t")
        for namespace in ("default", "kube-system"):
            for event in self.api.list("Event", namespace=namespace)[-30:]:
                whose = event["involvedObject"]["name"]
                print(event.get("lastTimestamp"), whose, event["reason"], event.get("message"), sep="\t")

    def entries(self):
        """The words that run a command on each machine."""
        nodes = {node.name: node.enter() for node in self.nodes}
        return nodes | {name: ["ip", "netns", "exec", name] for name in ("control", "router")}


def give_addresses(interface, addresses, namespace=""):
    for address, rest in zip(addresses, ("/24", "/64 nodad")):
        address, _, nodad = f"{address}{rest}".partition(" ")
        machine.run(f"ip {namespace} addr add {address} dev {interface} {nodad}")
    machine.run(f"ip {namespace} link set {interface} up")


def conditions_of(document):
    conditions = (document or {}).get("status", {}).get("conditions", [])
    return "\n".join(f"{each['type']}={each['status']}: {each.get('message', '')}" for each in conditions)


def pod_spec(node=None, container=None, **more):
    spec = {
        "containers": [{"name": "web", "image": image.IMAGE, "imagePullPolicy": "Never"} | (container or {})],
        "terminationGracePeriodSeconds": 1, "automountServiceAccountToken": False, "enableServiceLinks": False,
    }
    return spec | ({"nodeName": node.name} if node else {}) | more


def pod_document(name, node=None, labels=None, **more):
    metadata = {"name": name, "labels": {"e2e": "pod"} | (labels or {})}
    return {"kind": "Pod", "metadata": metadata, "spec": pod_spec(node, **more)}


class Pod:
    """One pod that the API server knows; what it said last is kept."""

    def __init__(self, cluster, name):
        self.cluster, self.name = cluster, name

    def wait_until_ready(self):
        self.document = wait_for(self.if_ready, f"pod {self.name} is Ready", self.explain)
        self.addresses = [each["ip"] for each in self.document["status"]["podIPs"]]
        self.node = self.cluster.node(self.document["spec"]["nodeName"])
        self.netns = self.node.sandbox_netns(self.node.sandbox(self.name))
        return self

    def if_ready(self):
        document = self.cluster.api.read("Pod", self.name)
        return document if document and is_ready(document) else None

    def was_restarted(self):
        status = self.cluster.api.read("Pod", self.name)["status"]
        return status["containerStatuses"][0]["restartCount"] > 0

    def explain(self):
        document = self.cluster.api.read("Pod", self.name)
        events = [f"{event['reason']}: {event['message']}" for event in self.cluster.api.list("Event")
                  if event["involvedObject"]["name"] == self.name]
        return "\n".join([conditions_of(document), *events[-8:]])

    def delete(self):
        self.cluster.api.delete("Pod", self.name)

    def wait_until_gone(self):
        wait_for(lambda: self.cluster.api.read("Pod", self.name) is None, f"pod {self.name} is gone", self.explain)
