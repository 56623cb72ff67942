//! A burst: as many pods as a kubelet allows a node, some at a time, as a runtime adds them after a reboot; then all of
//! them removed again.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::contestant::{Contestant, Pod, Verb};
use crate::process::{Cost, Way};
use crate::world::{Space, settle};

/// kubelet's `maxPods`.
pub const PODS: usize = 110;
/// How many at a time.
pub const WIDTHS: [usize; 2] = [8, 16];

/// After so many namespaces were dropped.
const PAUSE: Duration = Duration::from_millis(600);

/// What all pods took together.
#[derive(Debug, Clone, Copy, Default)]
pub struct Burst {
    pub add: Cost,
    pub del: Cost,
}

/// # Errors
/// The first answer of a plugin that is none; the burst ends early then.
pub fn burst(contestant: &Contestant, width: usize) -> Result<Burst, String> {
    let spaces: Vec<Space> = (0..PODS).map(|_| Space::new()).collect();
    settle();
    let results: Vec<Mutex<Value>> = (0..PODS).map(|_| Mutex::new(Value::Null)).collect();
    let all = |verb: Verb| {
        at_once(contestant, width, |number| {
            let pod = Pod {
                space: &spaces[number],
                container: format!("burst{number}"),
                number: number as u16,
            };
            let mut result = results[number].lock().unwrap();
            let added = Some(&*result).filter(|_| verb == Verb::Del);
            let (added, cost) = contestant.command_here(verb, &pod, (added, &Way::Bare))?;
            *result = added;
            Ok(cost)
        })
    };
    let burst = Burst {
        add: all(Verb::Add)?,
        del: all(Verb::Del)?,
    };
    drop(spaces);
    std::thread::sleep(PAUSE);
    Ok(burst)
}

/// Runs `work` for every pod on that many threads in the node's namespace. The wall time is that of all together.
fn at_once(
    contestant: &Contestant,
    width: usize,
    work: impl Fn(usize) -> Result<Cost, String> + Sync,
) -> Result<Cost, String> {
    let (next, total) = (AtomicUsize::new(0), Mutex::new(Ok(Cost::default())));
    let start = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..width {
            scope.spawn(|| {
                contestant.node.space.run(|| {
                    loop {
                        let number = next.fetch_add(1, Ordering::Relaxed);
                        if number >= PODS {
                            return;
                        }
                        let outcome = work(number);
                        let mut total = total.lock().unwrap();
                        match (&mut *total, outcome) {
                            (Ok(total), Ok(cost)) => *total += cost,
                            (Ok(_), Err(error)) => {
                                *total = Err(error);
                                return;
                            }
                            (Err(_), _) => return,
                        }
                    }
                });
            });
        }
    });
    let wall = start.elapsed();
    let total = total.into_inner().unwrap()?;
    Ok(Cost { wall, ..total })
}
