//! The TTL controller: tells kubelets by an annotation how long they may keep secrets and config maps, the longer the
//! more nodes there are.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use k8s_openapi::api::core::v1::Node;
use kube::Api;
use kube::api::{Patch, PatchParams};
use pilothouse_client::{Queue, key_of};

use crate::context::Context;
use crate::control::has_code;

const ANNOTATION: &str = "node.alpha.kubernetes.io/ttl";

/// From how many nodes down to the step before, up to how many, and the seconds. The steps overlap so that one node
/// more or less does not change all of them.
const STEPS: &[(usize, usize, u32)] = &[
    (0, 100, 0),
    (90, 500, 15),
    (450, 1000, 30),
    (900, 2000, 60),
    (1800, 10_000, 300),
    (9000, usize::MAX, 600),
];

/// The step for so many nodes, coming from `step`.
fn next_step(mut step: usize, nodes: usize) -> usize {
    while nodes > STEPS[step].1 {
        step += 1;
    }
    while nodes < STEPS[step].0 {
        step -= 1;
    }
    step
}

/// Starts the controller.
pub async fn start(context: Context) -> anyhow::Result<()> {
    let nodes = context.informer::<Node>();
    let queue: Queue<String> = Queue::new();
    let step = Arc::new(AtomicUsize::new(0));
    let (q, s, all) = (queue.clone(), step.clone(), nodes.clone());
    nodes.on_change(move |c| {
        let (old, new) = {
            let old = s.load(Ordering::Relaxed);
            (old, next_step(old, all.len()))
        };
        s.store(new, Ordering::Relaxed);
        if old == new {
            q.add(key_of(&**c.object()));
        } else {
            all.list().iter().for_each(|n| q.add(key_of(&**n)));
        }
    });
    let client = context.client.clone();
    let stop = context.stop.clone();
    tokio::spawn(async move {
        nodes.wait_synced().await;
        queue.run("ttl", 5, stop, move |name| {
            let (client, node) = (client.clone(), nodes.get(&name));
            let seconds = STEPS[step.load(Ordering::Relaxed)].2.to_string();
            async move {
                let Some(node) = node else { return Ok(None) };
                if node.metadata.annotations.as_ref().and_then(|a| a.get(ANNOTATION)) == Some(&seconds) {
                    return Ok(None);
                }
                let patch = serde_json::json!({"metadata": {"annotations": {ANNOTATION: seconds}}});
                let api: Api<Node> = Api::all(client);
                match api.patch(&name, &PatchParams::default(), &Patch::Merge(patch)).await {
                    Ok(_) => Ok(None),
                    Err(e) if has_code(&e, 404) => Ok(None),
                    Err(e) => Err(e),
                }
            }
        });
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_overlap() {
        assert_eq!(next_step(0, 100), 0);
        assert_eq!(next_step(0, 101), 1);
        assert_eq!(next_step(1, 90), 1);
        assert_eq!(next_step(1, 89), 0);
        assert_eq!(next_step(0, 20_000), 5);
        assert_eq!(next_step(5, 1), 0);
    }
}
