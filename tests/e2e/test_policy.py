"""Who may talk to whom: NetworkPolicies, with pods that come and go, traffic that runs, and a proxy between."""

import contextlib
import ipaddress
import itertools
import socket
import threading
import time

import machine
from cases import Case
from cluster import pod_document, pod_spec
from kube import wait_for
from podspan import ALLOCATIONS
from test_pods import PROBE
from traffic import Traffic

# How long an asker waits that is not to be answered, in seconds: SYNs go at once and after one second.
SILENCE = 1.5
DENY_ALL = {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}


def is_open(address, port, netns, patience=SILENCE):
    """The first packet arrives: somebody takes the connection, or says that nobody listens."""

    def attempt():
        try:
            socket.create_connection((address, port), timeout=patience).close()
        except ConnectionRefusedError:
            return True
        except OSError:
            return False
        return True

    return machine.within(netns, attempt)


class Policies(Case):
    def policy(self, name, spec):
        self.api.create({"kind": "NetworkPolicy", "metadata": {"name": name}, "spec": spec})

    def labelled(self, name, node, **labels):
        self.api.create(pod_document(name, node, labels))
        return self.cluster.pod(name)

    def assert_open(self, asker, server, port=80):
        for address in server.addresses:
            wait_for(lambda: is_open(address, port, asker.netns), f"{asker.name} reaches {server.name} at {address}")

    def assert_closed_to(self, asker, server, port=80):
        for address in server.addresses:
            self.assertFalse(is_open(address, port, asker.netns), f"{asker.name} reaches {server.name} at {address}")

    def until_closed(self, asker, server):
        for address in server.addresses:
            wait_for(lambda: not is_open(address, 80, asker.netns), f"{asker.name} no longer reaches {server.name}")

    def test_a_policy_that_is_there_before_a_deployment_holds_from_its_pods_first_moment(self):
        self.policy("web", {"podSelector": {"matchLabels": {"app": "web"}}, "ingress": [
            {"from": [{"podSelector": {"matchLabels": {"role": "client"}}}], "ports": [{"port": 80}]}]})
        client = self.labelled("client", self.nodes[0], role="client")
        strangers = self.pods(**{f"stranger-{node.name}": node for node in self.nodes})
        client.wait_until_ready()
        spec = pod_spec(container={"readinessProbe": PROBE})
        self.api.create({"kind": "Deployment", "metadata": {"name": "web"}, "spec": {
            "replicas": 6, "selector": {"matchLabels": {"app": "web"}},
            "template": {"metadata": {"labels": {"app": "web"}}, "spec": spec}}})
        seen = set()

        def is_complete():
            documents = self.api.list("Pod", "app=web")
            for document, stranger in itertools.product(documents, strangers):
                for each in document["status"].get("podIPs", []):
                    seen.add(each["ip"])
                    self.assertFalse(is_open(each["ip"], 80, stranger.netns, 0.05), f"{stranger.name} to {each['ip']}")
            return self.api.read("Deployment", "web")["status"].get("availableReplicas") == 6

        wait_for(is_complete, "the Deployment is there")
        self.assertGreaterEqual(len(seen), 2, "addresses that were asked at before all pods were ready")
        for document in self.api.list("Pod", "app=web"):
            web = self.cluster.pod(document["metadata"]["name"]).wait_until_ready()
            self.assert_open(client, web)
            self.assert_closed_to(strangers[0], web)

    def test_a_policy_that_comes_during_traffic_ends_what_it_forbids_and_nothing_else(self):
        [near, far, server] = self.pods(near=self.nodes[0], far=self.nodes[1], server=self.nodes[0])
        talks = {pod.name: Talk(pod, server) for pod in (near, far)}
        self.addCleanup(lambda: [talk.close() for talk in talks.values()])
        for talk in talks.values():
            self.assertTrue(talk.goes_on())
        selects_server = {"podSelector": {"matchLabels": {"name": "server"}}}
        self.api.patch("Pod", "server", {"metadata": {"labels": {"name": "server"}}})
        self.api.patch("Pod", "near", {"metadata": {"labels": {"name": "near"}}})
        self.policy("only-near", selects_server | {"ingress": [
            {"from": [{"podSelector": {"matchLabels": {"name": "near"}}}]}]})
        wait_for(lambda: not talks["far"].goes_on(), "the connection that is forbidden ends")
        self.assertTrue(talks["near"].goes_on())
        self.assert_closed_to(far, server)
        self.assert_open(near, server)
        self.api.delete("NetworkPolicy", "only-near")
        self.assert_open(far, server)
        self.assertTrue(talks["near"].goes_on())

    def test_probes_of_the_kubelet_pass_where_everything_is_denied(self):
        self.policy("deny-all", DENY_ALL)
        pod = self.cluster.create_pod("probed", self.nodes[0], container={"readinessProbe": PROBE, "livenessProbe": PROBE})
        [other] = self.pods(other=self.nodes[0])
        pod.wait_until_ready()
        time.sleep(5)
        [status] = self.api.read("Pod", "probed")["status"]["containerStatuses"]
        self.assertEqual((status["restartCount"], status["ready"]), (0, True))
        self.assert_closed_to(other, pod)
        for address in pod.addresses:
            self.assert_served("probed", address, netns=self.nodes[0].netns)

    def test_services_lead_to_where_policy_allows(self):
        server = self.labelled("server", self.nodes[0], app="server").wait_until_ready()
        client = self.labelled("client", self.nodes[0], role="client").wait_until_ready()
        [near, far] = self.pods(near=self.nodes[0], far=self.nodes[1])
        self.api.create({"kind": "Service", "metadata": {"name": "server"}, "spec": {
            "selector": {"app": "server"}, "ports": [{"port": 8080, "targetPort": 80}]}})
        address = self.api.read("Service", "server")["spec"]["clusterIP"]
        for pod in (client, near, far):
            wait_for(lambda: is_open(address, 8080, pod.netns), f"{pod.name} reaches the Service")
        self.policy("server", {"podSelector": {"matchLabels": {"app": "server"}}, "ingress": [
            {"from": [{"podSelector": {"matchLabels": {"role": "client"}}}], "ports": [{"port": 80}]}]})
        for pod in (near, far):
            wait_for(lambda: not is_open(address, 8080, pod.netns), f"{pod.name} no longer reaches the Service")
        self.assertTrue(is_open(address, 8080, client.netns))

    def test_what_is_in_force_stays_while_agents_are_killed(self):
        [server, friend, *strangers] = self.friends_and_strangers()
        with self.assert_in_force(server, friend, strangers):
            for _ in range(3):
                self.podspan.kill_agent(server.node)
                self.podspan.wait_for_agent(server.node)
                time.sleep(2)

    def test_podspan_is_upgraded_and_downgraded_and_what_is_in_force_stays(self):
        [server, friend, *strangers] = self.friends_and_strangers()
        with self.assert_in_force(server, friend, strangers):
            for reference in (self.podspan.next_reference, self.podspan.reference):
                self.podspan.change_image(reference)
                [late] = self.pods(late=server.node)
                for stranger in strangers:
                    for own, address in zip(late.addresses, stranger.addresses, strict=True):
                        self.assert_served(stranger.name, address, netns=late.netns, seen_from=own)
                self.assert_closed_to(late, server)
                late.delete()
                late.wait_until_gone()

    def test_what_is_in_force_stays_while_the_api_server_is_gone_and_an_address_comes_to_another_pod(self):
        [server, friend, *strangers] = self.friends_and_strangers()
        node = strangers[1].node
        with self.static_pod("old", node, role="friend") as old:
            # Known to the API, which is how the others' agents learn of it.
            self.cluster.pod(old.name)
            self.assert_open(old, server)
            subnets = self.subnets(node)
            with self.assert_in_force(server, friend, strangers), contextlib.ExitStack() as stack:
                with self.nothing_is_free(node, subnets):
                    self.cluster.kill_api_server()
                    node.set_static_pod("old", None)
                    wait_for(lambda: old.addresses[0] not in self.podspan.addresses(node), "the address is free")
                    new = stack.enter_context(self.static_pod("new", node))
                self.assertEqual(new.addresses[0], old.addresses[0])
                for address in new.addresses:
                    self.assert_served(new.name, address, netns=node.netns)
                self.assert_closed_to(new, server)
                self.cluster.start_api_server()
                # The agents have caught up when they know a new friend.
                self.assert_open(self.labelled("late", node, role="friend"), server)
                self.assert_closed_to(new, server)

    def friends_and_strangers(self):
        """A server whom only friends reach, a friend on another node, and strangers on the first and the last; all is in force."""
        [server_node, friend_node, last] = self.nodes
        self.policy("friends", {"podSelector": {"matchLabels": {"role": "server"}}, "ingress": [
            {"from": [{"podSelector": {"matchLabels": {"role": "friend"}}}]}]})
        [server, friend] = [self.labelled(role, node, role=role)
                            for role, node in (("server", server_node), ("friend", friend_node))]
        strangers = self.pods(near=server_node, far=last)
        for asker in strangers:
            self.assert_closed_to(asker, server)
        self.assert_open(friend, server)
        return [server, friend, *strangers]

    @contextlib.contextmanager
    def assert_in_force(self, server, friend, strangers):
        """While it is entered: the friend loses no datagram and no connection, and opens new ones; strangers open none to the
        server, and lose no datagram among each other."""
        talk = Talk(friend, server)
        self.addCleanup(talk.close)
        with contextlib.ExitStack() as stack:
            allowed = stack.enter_context(Trying(friend, server, SILENCE))
            denied = [stack.enter_context(Trying(stranger, server, 0.1)) for stranger in strangers]
            traffic = stack.enter_context(Traffic((friend, server), strangers, strangers[::-1]))
            yield
            self.assertTrue(talk.goes_on())
        print(f"{traffic.sent()} datagrams, {len(allowed.outcomes)} connections of a friend, "
              f"{sum(len(each.outcomes) for each in denied)} attempts of strangers, ", end="")
        self.assertEqual(traffic.lost(), {}, "datagrams lost on the way to those addresses and back")
        self.assertEqual(set(allowed.outcomes), {True}, "new connections of the friend")
        for stranger, each in zip(strangers, denied):
            self.assertEqual(set(each.outcomes), {False}, f"connections of {stranger.name}")

    @contextlib.contextmanager
    def static_pod(self, name, node, **labels):
        """While it is entered: a pod that the kubelet runs from a file, API server or not, as containerd knows it."""
        node.set_static_pod(name, pod_document(name, labels=labels))
        try:
            full_name = f"{name}-{node.name}"
            sandbox = wait_for(lambda: node.sandbox(full_name), f"{full_name} runs", node.daemons["kubelet"].last_words)
            yield StaticPod(full_name, node.sandbox_addresses(sandbox), node.sandbox_netns(sandbox))
        finally:
            node.set_static_pod(name, None)

    @contextlib.contextmanager
    def nothing_is_free(self, node, subnets):
        """While it is entered: each IPv4 address of the node belongs to somebody, so that the next pod gets the next one freed."""
        directory = node.path(ALLOCATIONS)
        [addresses] = [network.hosts() for network in map(ipaddress.ip_network, subnets) if network.version == 4]
        free = [file for file in (directory / str(address) for address in addresses) if not file.exists()]
        for file in free:
            file.write_text("somebody\r\neth0")
        try:
            yield
        finally:
            for file in free:
                file.unlink()


class StaticPod:
    """A pod that needs no API server."""

    def __init__(self, name, addresses, netns):
        self.name, self.addresses, self.netns = name, addresses, netns


class Trying:
    """While it is entered, a pod connects to another's addresses again and again; `outcomes` has whether it could."""

    def __init__(self, asker, server, patience):
        self.asker, self.server, self.patience = asker, server, patience
        self.outcomes, self.is_over = [], threading.Event()
        self.thread = threading.Thread(target=self.go_on, daemon=True)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.is_over.set()
        self.thread.join()

    def go_on(self):
        while not self.is_over.wait(0.05):
            self.outcomes += [is_open(address, 80, self.asker.netns, self.patience) for address in self.server.addresses]


class Talk:
    """One connection that stays: each word is answered by the same word."""

    def __init__(self, asker, server):
        address = server.addresses[0]
        listener = machine.within(server.netns, lambda: socket.create_server((address, 0)))
        self.connection = machine.within(asker.netns, lambda: socket.create_connection(listener.getsockname(), timeout=5))
        self.server, _ = listener.accept()
        listener.close()
        self.server.settimeout(0.1)
        self.connection.settimeout(SILENCE)
        self.is_closed = False
        self.thread = threading.Thread(target=self.answer, daemon=True)
        self.thread.start()

    def answer(self):
        while not self.is_closed:
            try:
                self.server.sendall(self.server.recv(64))
            except OSError:
                # Nothing came yet, or no longer comes.
                pass

    def goes_on(self):
        try:
            self.connection.sendall(b"word")
            return self.connection.recv(64) != b""
        except OSError:
            return False

    def close(self):
        self.is_closed = True
        self.thread.join()
        self.connection.close()
        self.server.close()
