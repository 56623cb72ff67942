"""Services through kube-proxy, in each of its modes."""

import itertools
import socket

import machine
from cases import Case, the
from cluster import OUTSIDE_ADDRESSES
from kube import wait_for


class Services:
    """The cases; which mode it is, the classes below say."""

    mode = None

    @classmethod
    def setUpClass(cls):
        the.cluster.set_proxy_mode(cls.mode)

    def service(self, name, **spec):
        """A Service for the pods of that name, with an address of each family, once every node knows its backends."""
        service = self.api.create({"kind": "Service", "metadata": {"name": name}, "spec": {
            "selector": {"app": name}, "ipFamilyPolicy": "RequireDualStack",
            "ports": [{"name": "http", "port": 8000, "targetPort": 80},
                      {"name": "dns", "port": 53, "protocol": "UDP"}]} | spec})
        return service["spec"]["clusterIPs"], {each["name"]: each.get("nodePort") for each in service["spec"]["ports"]}

    def web(self, node):
        return self.cluster.create_pod("web", node, labels={"app": "web"}).wait_until_ready()

    def test_a_service_leads_from_every_node_to_a_pod_and_keeps_the_address(self):
        web = self.web(self.nodes[0])
        addresses, _ = self.service("web")
        askers = self.pods(**{f"asker-{node.name}": node for node in self.nodes})
        for asker in askers:
            for family, address in enumerate(addresses):
                self.wait_for_service(address, asker.netns)
                self.assert_served("web", address, 8000, netns=asker.netns, seen_from=asker.addresses[family])
        for node, address in itertools.product(self.nodes, addresses):
            self.assert_served("web", address, 8000, netns=node.netns)

    def test_a_pod_reaches_itself_through_its_service(self):
        web = self.web(self.nodes[0])
        addresses, _ = self.service("web")
        for address in addresses:
            self.wait_for_service(address, web.netns)
            self.assert_served("web", address, 8000, netns=web.netns)

    def test_a_service_leads_to_pods_on_all_nodes(self):
        labels = {"app": "web"}
        webs = [self.cluster.create_pod(f"web-{node.name}", node, labels=labels) for node in self.nodes]
        names = {web.wait_until_ready().name for web in webs}
        addresses, _ = self.service("web")
        [asker] = self.pods(asker=self.nodes[1])
        for address in addresses:
            self.wait_for_service(address, asker.netns)
            seen = set()
            wait_for(lambda: names == seen or seen.add(machine.fetch(address, 8000, asker.netns)[0]),
                     f"all of {names} answer at {address}", lambda: f"seen: {seen}")

    def test_datagrams_find_their_way_through_a_service(self):
        web = self.web(self.nodes[0])
        addresses, _ = self.service("web")
        askers = self.pods(near=self.nodes[0], far=self.nodes[1])
        with machine.Answering(web.netns, 53, socket.SOCK_DGRAM):
            for asker in askers:
                for family, address in enumerate(addresses):
                    self.wait_for_service(address, asker.netns)
                    seen = machine.seen_by(address, 53, asker.netns, socket.SOCK_DGRAM)
                    self.assertEqual(seen, asker.addresses[family], f"asker of {address} port 53 in {asker.name}")

    def test_node_ports_lead_from_outside_to_a_pod(self):
        web = self.web(self.nodes[0])
        _, ports = self.service("web", type="NodePort")
        for node in self.nodes:
            for address in node.addresses:
                self.wait_for_service(address, None, ports["http"])
                self.assert_served("web", address, ports["http"])

    def test_node_ports_with_local_policy_keep_the_asker_s_address(self):
        self.web(self.nodes[0])
        _, ports = self.service("web", type="NodePort", externalTrafficPolicy="Local")
        for address, outside in zip(self.nodes[0].addresses, OUTSIDE_ADDRESSES):
            self.wait_for_service(address, None, ports["http"])
            self.assert_served("web", address, ports["http"], seen_from=outside)

    def wait_for_service(self, address, netns, port=8000):
        """kube-proxy has heard of it."""
        wait_for(lambda: machine.fetch(address, port, netns), f"{address} port {port} answers in {netns or 'outside'}",
                 patience=30)


class ServicesOfIptables(Services, Case):
    mode = "iptables"


class ServicesOfNftables(Services, Case):
    mode = "nftables"
