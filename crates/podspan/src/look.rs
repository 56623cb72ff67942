//! One look: what is observed, what is desired, and the difference. Shared by the agent, `plan` and `status`.

use podspan_kernel::Netlink;

use crate::cluster::Cluster;
use crate::config::Config;
use crate::conflist::Found;
use crate::desired::{Desired, desired};
use crate::observe::{Observed, observe, observe_links};
use crate::packet_filter::PacketFilter;
use crate::plan::{Change, Plan, plan};

/// What a look found.
#[derive(Debug)]
pub struct Look {
    /// What should be and what is; none when the cluster does not have this node, and then nothing is to be changed.
    pub both: Option<(Desired, Observed)>,
    /// The difference, and all refusals.
    pub plan: Plan,
}

impl Look {
    /// Nothing that a pod's start depends on is left to do, and the conflist invites the runtime.
    pub fn is_ready_for_pods(&self) -> bool {
        let Some((desired, observed)) = &self.both else {
            return false;
        };
        let for_pods = |change: &Change| {
            change.is_for_pods() || matches!(change, Change::WriteConflist { .. })
        };
        let is_invited = desired.conflist.is_some() && matches!(observed.conflist, Found::Ours(_));
        is_invited && !self.plan.changes.iter().any(for_pods)
    }
}

/// Looks at the machine.
///
/// # Errors
/// What the kernel or the file system answered.
pub fn look(
    netlink: &mut Netlink,
    filter: &mut PacketFilter,
    config: &Config,
    cluster: &Cluster,
) -> anyhow::Result<Look> {
    let links = observe_links(netlink, config)?;
    let (desired, refusals) = desired(config, cluster, &links.underlay)?;
    let Some(desired) = desired else {
        let plan = Plan {
            refusals,
            ..Plan::default()
        };
        return Ok(Look { both: None, plan });
    };
    let observed = observe(netlink, config, &desired, (links, filter))?;
    let mut plan = plan(&desired, &observed);
    plan.refusals.splice(0..0, refusals);
    Ok(Look {
        both: Some((desired, observed)),
        plan,
    })
}
