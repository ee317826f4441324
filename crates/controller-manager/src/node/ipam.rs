//! The node IPAM controller: gives each node a range of pod addresses from `--cluster-cidr`.

use std::collections::HashMap;
use std::sync::Arc;

use anyhow::Context as _;
use k8s_openapi::api::core::v1::Node;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use parking_lot::Mutex;
use pilothouse_client::{Change, EventRecorder, Queue, key_of};

use super::node_reference;
use super::ranges::{Blocks, Cidr};
use crate::config::Config;
use crate::context::Context;
use crate::control::has_code;

struct State {
    /// One for each address family.
    ranges: Vec<Blocks>,
    /// What nodes have, by uid; also while that is being written.
    given: HashMap<String, Vec<Cidr>>,
}

struct Allocator {
    client: Client,
    recorder: EventRecorder,
    state: Mutex<State>,
}

/// Starts the controller; does nothing without `--allocate-node-cidrs`.
pub async fn start(context: Context) -> anyhow::Result<()> {
    if !context.config.allocate_node_cidrs {
        return Ok(());
    }
    let allocator = Arc::new(Allocator {
        client: context.client.clone(),
        recorder: context.recorder("cidrAllocator"),
        state: Mutex::new(State { ranges: ranges(&context.config)?, given: HashMap::new() }),
    });
    let nodes = context.informer::<Node>();
    let queue: Queue<String> = Queue::new();
    let stop = context.stop.clone();
    tokio::spawn(async move {
        nodes.wait_synced().await;
        // What nodes have already is known before any node gets something.
        nodes.list().iter().for_each(|n| allocator.occupy(n));
        let (a, q) = (allocator.clone(), queue.clone());
        nodes.on_change(move |c| {
            if let Change::Deleted(node) = c {
                a.release(node);
            } else {
                a.occupy(c.object());
                q.add(key_of(&**c.object()));
            }
        });
        queue.run("nodeipam", 5, stop, move |name| {
            let (allocator, node) = (allocator.clone(), nodes.get(&name));
            async move {
                match node {
                    Some(node) => allocator.allocate(&node).await.map(|()| None),
                    None => Ok(None),
                }
            }
        });
    });
    Ok(())
}

fn ranges(config: &Config) -> anyhow::Result<Vec<Blocks>> {
    let services: Vec<Cidr> =
        config.service_cluster_ip_ranges.iter().filter_map(|s| Cidr::parse(s)).collect();
    let mut list = Vec::new();
    for text in &config.cluster_cidrs {
        let range =
            Cidr::parse(text).with_context(|| format!("--cluster-cidr={text}: not a range of addresses"))?;
        let size = if range.is_v4() { config.node_cidr_mask_size } else { config.node_cidr_mask_size_ipv6 };
        let mut blocks =
            Blocks::new(range, size).map_err(|e| anyhow::anyhow!("--cluster-cidr={text}: {e}"))?;
        services.iter().for_each(|s| blocks.occupy(s));
        list.push(blocks);
    }
    anyhow::ensure!(!list.is_empty(), "--allocate-node-cidrs: a --cluster-cidr is needed too");
    Ok(list)
}

fn uid(node: &Node) -> String {
    node.metadata.uid.clone().unwrap_or_default()
}

fn ranges_of(node: &Node) -> Vec<Cidr> {
    let Some(spec) = &node.spec else { return Vec::new() };
    let list =
        spec.pod_cidrs.clone().filter(|l| !l.is_empty()).or_else(|| spec.pod_cidr.clone().map(|c| vec![c]));
    list.unwrap_or_default().iter().filter_map(|c| Cidr::parse(c)).collect()
}

impl Allocator {
    fn occupy(&self, node: &Node) {
        let ranges = ranges_of(node);
        if ranges.is_empty() {
            return;
        }
        let State { ranges: blocks, given } = &mut *self.state.lock();
        for b in blocks.iter_mut() {
            ranges.iter().for_each(|c| b.occupy(c));
        }
        given.insert(uid(node), ranges);
    }

    fn release(&self, node: &Node) {
        let State { ranges: blocks, given } = &mut *self.state.lock();
        for cidr in given.remove(&uid(node)).unwrap_or_default() {
            // Two nodes may have been given the same by hand.
            if !given.values().flatten().any(|c| *c == cidr) {
                blocks.iter_mut().for_each(|b| b.release(&cidr));
            }
        }
    }

    async fn allocate(&self, node: &Node) -> Result<(), kube::Error> {
        let name = node.metadata.name.as_deref().unwrap_or_default();
        let object = node_reference(name, node.metadata.uid.as_deref());
        let taken = {
            let State { ranges: blocks, given } = &mut *self.state.lock();
            if given.contains_key(&uid(node)) {
                return Ok(());
            }
            let taken: Vec<Cidr> = blocks.iter_mut().filter_map(Blocks::take).collect();
            if taken.len() < blocks.len() {
                for cidr in &taken {
                    blocks.iter_mut().for_each(|b| b.release(cidr));
                }
                None
            } else {
                given.insert(uid(node), taken.clone());
                Some(taken)
            }
        };
        let Some(taken) = taken else {
            let text = format!("Node {name} status is now: CIDRNotAvailable");
            self.recorder.normal(&object, "CIDRNotAvailable", text);
            let error = kube::core::Status::failure("no range of addresses is left", "CIDRNotAvailable")
                .with_code(503);
            return Err(kube::Error::Api(error.boxed()));
        };
        let texts: Vec<String> = taken.iter().map(ToString::to_string).collect();
        let patch = serde_json::json!({
            "metadata": {"uid": node.metadata.uid},
            "spec": {"podCIDR": texts.first(), "podCIDRs": texts},
        });
        let api: Api<Node> = Api::all(self.client.clone());
        match api.patch(name, &PatchParams::default(), &Patch::Strategic(patch)).await {
            Ok(_) => Ok(()),
            Err(e) if has_code(&e, 404) || has_code(&e, 409) => {
                self.release(node);
                Ok(())
            }
            Err(e) => {
                // The write may have gone through all the same.
                let written = api.get_opt(name).await.ok().flatten().is_some_and(|n| ranges_of(&n) == taken);
                if written {
                    return Ok(());
                }
                let text = format!("Node {name} status is now: CIDRAssignmentFailed");
                self.recorder.normal(&object, "CIDRAssignmentFailed", text);
                self.release(node);
                Err(e)
            }
        }
    }
}
