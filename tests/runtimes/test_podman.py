"""Containers of podman on networks of its CNI backend: networks that podman writes, and one that we wrote.

podman 4 removes a network's bridge itself when the network is removed, but only that of a network of type `bridge`.
"""

import json
import os
import pathlib
import shutil

import node
from image import IMAGE
from node import HOME, NODE_ADDRESSES, OUTSIDE, OUTSIDE_ADDRESSES, PLUGINS, Answering, seen_by

CONF_DIR = HOME / "net.d"
NETWORK = "front"

CONTAINERS_CONF = f"""
[network]
network_backend = "cni"
cni_plugin_dirs = ["{PLUGINS}"]
network_config_dir = "{CONF_DIR}"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "none"
runtime = "runc"
[containers]
log_driver = "k8s-file"
# podman would load a profile of its own into the machine's kernel.
apparmor_profile = "unconfined"
"""
STORAGE_CONF = f"""
[storage]
driver = "vfs"
graphroot = "{HOME}/storage"
runroot = "{HOME}/containers"
"""
PLUGIN = {
    "type": "podspan-cni",
    "bridge": "podspan0",
    "ipam": {"ranges": [[{"subnet": "10.89.7.0/24"}], [{"subnet": "fd00:10:89:7::/64"}]]},
}
PORT_MAPPINGS = {"portMappings": True}


def conflist(*plugins):
    """What podman takes for one of its networks when it lies in its directory."""
    return json.dumps({"cniVersion": "1.0.0", "name": NETWORK, "plugins": plugins})


def setUpModule():
    CONF_DIR.mkdir()
    for variable, text in (("CONTAINERS_CONF", CONTAINERS_CONF), ("CONTAINERS_STORAGE_CONF", STORAGE_CONF)):
        file = HOME / variable.lower()
        file.write_text(text)
        os.environ[variable] = str(file)
    podman("load", "--quiet", "--input", node.IMAGE_ARCHIVE)


def podman(*words):
    return node.run(["podman", *words]).strip()


def remove_all_containers():
    """Their ids."""
    return podman("rm", "--force", "--all", "--time", "0").split()


class Container:
    def __init__(self, name, *options, network=NETWORK):
        self.name = name
        self.id = podman("run", "--detach", "--name", name, "--hostname", name, "--network", network,
                         "--cgroup-parent", node.CGROUP, *options, IMAGE)

    def settings(self):
        return json.loads(podman("inspect", self.name))[0]["NetworkSettings"]

    @property
    def netns(self):
        return self.settings()["SandboxKey"]

    def addresses(self, network=NETWORK):
        """As podman says them, IPv4 first."""
        network = self.settings()["Networks"][network]
        return [address for address in (network["IPAddress"], network["GlobalIPv6Address"]) if address]

    def remove(self):
        podman("rm", "--force", "--time", "0", self.name)


class OnOneNetwork:
    """The cases; which network it is, the classes below say."""

    def setUp(self):
        self.make_network()

    def tearDown(self):
        containers = remove_all_containers()
        try:
            self.assert_nothing_left(*containers)
        finally:
            podman("network", "rm", NETWORK)
        self.assertEqual(list(CONF_DIR.iterdir()), [CONF_DIR / "cni.lock"])
        super().tearDown()

    def assert_nothing_left(self, *traces):
        """No address, no veth, no file of CNI's, and none of these words in nftables."""
        self.assertEqual(self.taken(), [])
        self.assertEqual(node.ports_of(self.bridge()), [])
        self.assertEqual(list(pathlib.Path("/var/lib/cni/results").glob("*")), [])
        rules = node.ruleset()
        for trace in traces:
            self.assertNotIn(trace, rules)

    def test_containers_talk(self):
        web, db = Container("web"), Container("db")
        self.assertEqual(len(web.addresses()), 2)
        for server, asker in ((web, db), (db, web), (web, web)):
            for address, own in zip(server.addresses(), asker.addresses()):
                self.assert_served(server.name, address, netns=asker.netns, seen_from=own)
        # The reference bridge plugin leaves duplicate address detection on for the bridge.
        self.assert_soon(lambda: self.gateways == node.addresses(self.bridge()), "the bridge has its addresses")
        for address, gateway in zip(web.addresses(), self.gateways):
            self.assert_served("web", address, seen_from=gateway)
        self.assertEqual(node.addresses("eth0", web.netns), web.addresses())

    def test_removal_frees_everything(self):
        web, db = Container("web", "--publish", "8080:80"), Container("db")
        self.assertEqual(self.taken(), sorted(web.addresses() + db.addresses()))
        traces = [web.id, *web.addresses()]
        web.remove()
        self.assertEqual(self.taken(), sorted(db.addresses()))
        traces += [db.id, *db.addresses()]
        db.remove()
        self.assert_nothing_left(*traces)

    def test_a_published_port_answers(self):
        web = Container("web", "--publish", "8080:80", "--publish", f"{NODE_ADDRESSES[0]}:8081:80",
                        "--publish", "5353:53/udp")
        self.assert_ports_lead_to(web, neighbour=Container("db"))
        web.remove()
        self.assert_ports_closed()

    def test_asked_for_addresses_are_given_and_kept(self):
        # podman asks by CNI_ARGS at first; at the next start by the capability `ips`, the address twice.
        mac = "0a:58:00:00:00:07"
        web = Container("web", "--ip", self.asked, "--mac-address", mac)

        def assert_as_asked():
            self.assertEqual(web.addresses()[0], self.asked)
            self.assertEqual(node.links(web.netns)["eth0"]["address"], mac)
            self.assert_served("web", self.asked)

        assert_as_asked()
        podman("restart", "--time", "0", "web")
        assert_as_asked()
        podman("network", "reload", "web")
        assert_as_asked()

    def test_a_restarted_container_is_on_the_network(self):
        web, db = Container("web", "--publish", "8080:80"), Container("db")
        podman("stop", "--time", "0", "web")
        self.assertEqual(self.taken(), sorted(db.addresses()))
        podman("start", "web")
        for own, address in zip(db.addresses(), web.addresses()):
            self.assert_served("web", address, netns=db.netns, seen_from=own)
        self.assert_served("web", NODE_ADDRESSES[0], 8080, netns=OUTSIDE)

    def test_a_container_leaves_the_network_and_comes_back(self):
        web = Container("web")
        podman("network", "disconnect", NETWORK, "web")
        self.assertEqual(self.taken(), [])
        podman("network", "connect", NETWORK, "web")
        self.assertEqual(self.taken(), sorted(web.addresses()))
        self.assert_served("web", web.addresses()[0])

    def test_a_network_comes_up_again_after_its_rules_and_links_were_flushed(self):
        # What `podman network reload` is for, when a firewall has been restarted.
        web = Container("web", "--publish", "8080:80")
        before = web.addresses()
        node.restart_firewall()
        podman("network", "reload", "--all")
        self.assertEqual(web.addresses(), before)
        self.assert_served("web", NODE_ADDRESSES[0], 8080, netns=OUTSIDE)
        node.run(f"ip link del {self.bridge()}")
        podman("network", "reload", "--all")
        self.assertEqual(web.addresses(), before)
        self.assert_served("web", NODE_ADDRESSES[0], 8080, netns=OUTSIDE)


class NetworkOfPodman(OnOneNetwork, node.Case):
    """A network that podman made: bridge with host-local, portmap, firewall, tuning."""

    gateways = ["10.89.8.1", "fd00:10:89:8::1"]
    asked = "10.89.8.77"

    def make_network(self):
        podman("network", "create", "--ipv6", "--disable-dns", "--subnet", "10.89.8.0/24", "--subnet",
               "fd00:10:89:8::/64", NETWORK)

    def bridge(self):
        return json.loads((CONF_DIR / f"{NETWORK}.conflist").read_text())["plugins"][0]["bridge"]

    def taken(self):
        # Whichever plugin answers to `host-local` keeps them.
        directories = [pathlib.Path(top) / NETWORK for top in ("/var/lib/cni/networks", "/run/podspan/ipam")]
        return [address for directory in directories for address in node.addresses_in(directory)]

    def tearDown(self):
        bridge = self.bridge()
        super().tearDown()
        self.assertNotIn(bridge, node.links())

    def test_what_leaves_the_node_has_its_address(self):
        web = Container("web")
        with Answering(OUTSIDE, 7):
            for address, own in zip(OUTSIDE_ADDRESSES, NODE_ADDRESSES):
                self.assertEqual(seen_by(address, 7, web.netns), own)
        db = Container("db")
        with Answering(web.netns, 7):
            for address, own in zip(web.addresses(), db.addresses()):
                self.assertEqual(seen_by(address, 7, db.netns), own)


class NetworkOfOurs(OnOneNetwork, node.Case):
    """A network that lies in the directory as a file: podspan-cni."""

    gateways = ["10.89.7.1", "fd00:10:89:7::1"]
    asked = "10.89.7.77"

    def make_network(self):
        portmap = {"type": "portmap", "capabilities": PORT_MAPPINGS}
        (CONF_DIR / f"{NETWORK}.conflist").write_text(conflist(PLUGIN, portmap))

    def bridge(self):
        return "podspan0"

    def taken(self):
        return node.addresses_in(pathlib.Path("/run/podspan/ipam") / NETWORK)

    def tearDown(self):
        super().tearDown()
        # The bridge stays, as podman does not know whose it is; the next network is not to find it.
        if "podspan0" in node.links():
            node.run("ip link del podspan0")

    def test_a_published_port_answers(self):
        super().test_a_published_port_answers()
        remove_all_containers()
        (CONF_DIR / f"{NETWORK}.conflist").write_text(conflist(PLUGIN | {"capabilities": PORT_MAPPINGS}))
        super().test_a_published_port_answers()


class OtherNetworks(node.Case):
    """What podman can have a network be, by the plugins whose names it writes."""

    def setUp(self):
        self.networks = []

    def tearDown(self):
        remove_all_containers()
        for name in self.networks:
            podman("network", "rm", name)
        super().tearDown()

    def network(self, name, subnet, *options):
        podman("network", "create", "--disable-dns", "--subnet", subnet, *options, name)
        self.networks.append(name)

    def test_a_container_is_on_two_networks(self):
        self.network("one", "10.89.1.0/24")
        self.network("two", "10.89.2.0/24")
        web = Container("web", network="one,two")
        for name in self.networks:
            asker = Container(f"on-{name}", network=name)
            [address], [own] = web.addresses(name), asker.addresses(name)
            self.assert_served("web", address, netns=asker.netns, seen_from=own)
        self.assertEqual(set(node.links(web.netns)), {"lo", "eth0", "eth1"})

    def test_an_internal_network_leads_nowhere_else(self):
        self.network("inner", "10.89.3.0/24", "--internal")
        web, db = Container("web", network="inner"), Container("db", network="inner")
        [address], [own] = web.addresses("inner"), db.addresses("inner")
        self.assert_served("web", address, netns=db.netns, seen_from=own)
        self.assertEqual(node.ip("route show default", db.netns), [])

    def test_options_of_a_network_are_kept_to(self):
        self.network("odd", "10.89.4.0/24", "--gateway", "10.89.4.254", "--ip-range", "10.89.4.64/29", "--opt", "mtu=1400")
        web = Container("web", network="odd")
        [address] = web.addresses("odd")
        self.assertIn(address, [f"10.89.4.{number}" for number in range(64, 72)])
        self.assertEqual(node.links(web.netns)["eth0"]["mtu"], 1400)
        self.assertEqual([route["gateway"] for route in node.ip("route show default", web.netns)], ["10.89.4.254"])
        self.assert_served("web", address, seen_from="10.89.4.254")

    def test_the_network_that_debian_configures(self):
        shutil.copy("/etc/cni/net.d/87-podman-bridge.conflist", CONF_DIR)
        self.addCleanup((CONF_DIR / "87-podman-bridge.conflist").unlink)
        web, db = Container("web", "--publish", "8080:80", network="podman"), Container("db", network="podman")
        [address], [own] = web.addresses("podman"), db.addresses("podman")
        self.assert_served("web", address, netns=db.netns, seen_from=own)
        self.assert_served("web", NODE_ADDRESSES[0], 8080, netns=OUTSIDE, seen_from=OUTSIDE_ADDRESSES[0])
