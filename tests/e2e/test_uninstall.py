"""The last case: Podspan goes, and the nodes are as they were."""

import machine
from cases import Case
from podspan import ALLOCATIONS, CONFLIST, PLUGIN


class Uninstall(Case):
    def test_the_nodes_are_clean_although_the_agents_account_goes_first(self):
        for node in self.nodes:
            self.assertTrue(node.path(PLUGIN).exists() and node.path(CONFLIST).exists(), node.name)
            self.assertTrue(self.ours(node), node.name)
        self.podspan.uninstall()
        for node in self.nodes:
            for path in (PLUGIN, CONFLIST, ALLOCATIONS):
                self.assertFalse(node.path(path).exists(), f"{node.name}: {path}")
            self.assertEqual(self.ours(node), [], node.name)

    def ours(self, node):
        """What bears our mark in the node's kernel."""
        links = [link["ifname"] for link in machine.ip("link show", node.netns) if "podspan" in link["ifname"]]
        routes = [route["dst"] for family in ("-4", "-6")
                  for route in machine.ip(f"{family} route show proto 112", node.netns)]
        tables = machine.within(node.netns, lambda: machine.run("nft list tables")).splitlines()
        return links + routes + [table for table in tables if "podspan" in table]
