//! Who owns whom, by uid: what the garbage collector knows. No I/O here.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::core::ApiResource;

/// Finalizer of an object that goes only after what blocks it has gone.
pub const FOREGROUND: &str = "foregroundDeletion";
/// Finalizer of an object whose dependents are to stay.
pub const ORPHAN: &str = "orphan";

/// A resource that is watched.
#[derive(Debug, PartialEq, Eq)]
pub struct Watched {
    /// Group, version, plural, kind.
    pub resource: ApiResource,
    /// Whether its objects are in namespaces.
    pub namespaced: bool,
}

/// One object.
#[derive(Debug, Clone)]
pub struct Node {
    /// Its resource.
    pub watched: Arc<Watched>,
    /// Its namespace; empty for a cluster-wide object.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its owners.
    pub owners: Vec<OwnerReference>,
    /// Whether it is being deleted.
    pub deleting: bool,
    /// Whether it waits for what blocks it to go.
    pub foreground: bool,
    /// Whether its dependents are to be let go first.
    pub orphaning: bool,
}

/// What has to be looked at after a change.
#[derive(Debug, Default, PartialEq)]
pub struct Effects {
    /// Uids of objects that may have to go.
    pub delete: Vec<String>,
    /// Uids of objects whose dependents are to be let go.
    pub orphan: Vec<String>,
    /// Uids of objects with the reference to an owner in another namespace.
    pub foreign: Vec<(String, OwnerReference)>,
}

/// The graph.
#[derive(Debug, Default)]
pub struct Graph {
    nodes: HashMap<String, Node>,
    /// By the owner's uid, which need not be a node (yet).
    dependents: HashMap<String, HashSet<String>>,
}

impl Graph {
    /// An object is there, or has changed.
    pub fn observe(&mut self, watched: &Arc<Watched>, meta: ObjectMeta) -> Effects {
        let mut effects = Effects::default();
        let Some(uid) = meta.uid else { return effects };
        let deleting = meta.deletion_timestamp.is_some();
        let has = |f: &str| meta.finalizers.iter().flatten().any(|x| x == f);
        let node = Node {
            watched: watched.clone(),
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
            deleting,
            foreground: deleting && has(FOREGROUND),
            orphaning: deleting && has(ORPHAN),
            owners: meta.owner_references.unwrap_or_default(),
        };
        let old = self.nodes.remove(&uid);
        self.compare_owners(&uid, old.as_ref(), &node, &mut effects);
        if node.orphaning && !old.as_ref().is_some_and(|o| o.orphaning) {
            effects.orphan.push(uid.clone());
        }
        if node.foreground && !old.as_ref().is_some_and(|o| o.foreground) {
            effects.delete.extend(self.dependents_of(&uid));
            effects.delete.push(uid.clone());
        }
        self.nodes.insert(uid, node);
        effects
    }

    fn compare_owners(&mut self, uid: &str, old: Option<&Node>, new: &Node, effects: &mut Effects) {
        let before = old.map(|o| o.owners.as_slice()).unwrap_or_default();
        for owner in before {
            let now = new.owners.iter().find(|o| o.uid == owner.uid);
            let unblocks = blocks(owner) && !now.is_some_and(blocks);
            if now.is_none() {
                self.unlink(&owner.uid, uid);
            }
            if (now.is_none() || unblocks) && self.nodes.get(&owner.uid).is_some_and(|n| n.foreground) {
                effects.delete.push(owner.uid.clone());
            }
        }
        let mut look = false;
        for owner in &new.owners {
            if before.iter().any(|o| o.uid == owner.uid) {
                continue;
            }
            self.dependents.entry(owner.uid.clone()).or_default().insert(uid.to_string());
            match self.nodes.get(&owner.uid) {
                Some(n) if n.watched.namespaced && n.namespace != new.namespace => {
                    effects.foreign.push((uid.to_string(), owner.clone()));
                    look = true;
                }
                Some(n) => look |= n.foreground,
                None => look = true,
            }
        }
        if look {
            effects.delete.push(uid.to_string());
        }
    }

    /// An object is gone. Says too whether it had dependents.
    pub fn remove(&mut self, uid: &str) -> (Effects, bool) {
        let mut effects = Effects::default();
        let Some(node) = self.nodes.remove(uid) else { return (effects, false) };
        for owner in &node.owners {
            self.unlink(&owner.uid, uid);
            if self.nodes.get(&owner.uid).is_some_and(|n| n.foreground) {
                effects.delete.push(owner.uid.clone());
            }
        }
        let dependents = self.dependents_of(uid);
        let any = !dependents.is_empty();
        effects.delete.extend(dependents);
        (effects, any)
    }

    fn unlink(&mut self, owner: &str, dependent: &str) {
        if let Some(set) = self.dependents.get_mut(owner) {
            set.remove(dependent);
            if set.is_empty() {
                self.dependents.remove(owner);
            }
        }
    }

    /// An object.
    pub fn get(&self, uid: &str) -> Option<&Node> {
        self.nodes.get(uid)
    }

    /// The uids of the objects that name this one as an owner.
    pub fn dependents_of(&self, uid: &str) -> Vec<String> {
        self.dependents.get(uid).into_iter().flatten().cloned().collect()
    }

    /// The uids of the dependents that keep a foreground deletion from going on.
    pub fn blocking(&self, uid: &str) -> Vec<String> {
        let is_blocking = |d: &&String| {
            self.nodes.get(*d).is_some_and(|n| n.owners.iter().any(|o| o.uid == uid && blocks(o)))
        };
        self.dependents.get(uid).into_iter().flatten().filter(is_blocking).cloned().collect()
    }

    /// Whether all owners of an object are known to be there, are what the references say, and do not wait for their
    /// dependents to go: then nothing is to be done for it, and nobody has to be asked.
    pub fn owners_are_fine(&self, node: &Node) -> bool {
        node.owners.iter().all(|o| {
            self.nodes.get(&o.uid).is_some_and(|n| {
                !n.foreground
                    && n.name == o.name
                    && n.watched.resource.kind == o.kind
                    && group_of(&o.api_version) == n.watched.resource.group
                    && (!n.watched.namespaced || n.namespace == node.namespace)
            })
        })
    }

    /// The uids of all objects of a resource.
    pub fn all_of(&self, watched: &Arc<Watched>) -> Vec<String> {
        self.nodes.iter().filter(|(_, n)| Arc::ptr_eq(&n.watched, watched)).map(|(u, _)| u.clone()).collect()
    }
}

fn blocks(owner: &OwnerReference) -> bool {
    owner.block_owner_deletion == Some(true)
}

/// The group in an `apiVersion`; empty for the core group.
pub fn group_of(api_version: &str) -> &str {
    api_version.split_once('/').map_or("", |(g, _)| g)
}

/// How an owner turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// There, and it stays.
    Solid,
    /// Gone, or never there.
    Dangling,
    /// There, and it waits for its dependents to go.
    Waiting,
}

/// What is to be done with an object that has owners.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing.
    Keep,
    /// Take these owners off.
    Release(Vec<String>),
    /// Delete it in the foreground: an owner waits, and it has dependents itself.
    DeleteForeground,
    /// Delete it, in the way its finalizers ask for.
    Delete,
}

/// Decides by what its owners, by uid, turned out to be.
pub fn verdict(owners: &[(String, Owner)], has_dependents: bool) -> Verdict {
    let any = |o: Owner| owners.iter().any(|(_, x)| *x == o);
    if owners.is_empty() {
        return Verdict::Keep;
    }
    if any(Owner::Solid) {
        let rest: Vec<String> =
            owners.iter().filter(|(_, o)| *o != Owner::Solid).map(|(u, _)| u.clone()).collect();
        return if rest.is_empty() { Verdict::Keep } else { Verdict::Release(rest) };
    }
    if any(Owner::Waiting) && has_dependents { Verdict::DeleteForeground } else { Verdict::Delete }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn watched() -> Arc<Watched> {
        let resource = ApiResource::from_gvk(&kube::core::GroupVersionKind::gvk("", "v1", "ConfigMap"));
        Arc::new(Watched { resource, namespaced: true })
    }

    fn meta(name: &str, owner: Option<(&str, bool)>, more: Value) -> ObjectMeta {
        let mut m: ObjectMeta = serde_json::from_value(more).unwrap();
        m.name = Some(name.into());
        m.uid = Some(name.into());
        m.namespace = Some("ns".into());
        m.owner_references = owner.map(|(o, block)| {
            vec![OwnerReference {
                api_version: "v1".into(),
                kind: "ConfigMap".into(),
                name: o.into(),
                uid: o.into(),
                block_owner_deletion: Some(block),
                controller: None,
            }]
        });
        m
    }

    #[test]
    fn dependents_of_what_goes_are_looked_at() {
        let (w, mut g) = (watched(), Graph::default());
        assert_eq!(g.observe(&w, meta("a", None, json!({}))), Effects::default());
        assert_eq!(g.observe(&w, meta("b", Some(("a", true)), json!({}))), Effects::default());
        assert!(g.owners_are_fine(g.get("b").unwrap()));
        let (effects, any) = g.remove("a");
        assert_eq!((effects.delete, any), (vec!["b".to_string()], true));
        assert!(!g.owners_are_fine(g.get("b").unwrap()));
        g.remove("b");
        assert!(g.dependents.is_empty() && g.nodes.is_empty());
    }

    #[test]
    fn an_owner_never_seen_is_looked_for() {
        let (w, mut g) = (watched(), Graph::default());
        assert_eq!(g.observe(&w, meta("b", Some(("x", false)), json!({}))).delete, ["b"]);
        assert_eq!(g.observe(&w, meta("x", None, json!({}))), Effects::default());
        assert_eq!(g.dependents_of("x"), ["b"]);
    }

    #[test]
    fn a_foreground_deletion_waits_for_what_blocks() {
        let (w, mut g) = (watched(), Graph::default());
        g.observe(&w, meta("a", None, json!({})));
        g.observe(&w, meta("b", Some(("a", true)), json!({})));
        let going = json!({"deletionTimestamp": "2024-01-01T00:00:00Z", "finalizers": [FOREGROUND]});
        assert_eq!(g.observe(&w, meta("a", None, going.clone())).delete, ["b", "a"]);
        assert_eq!(g.observe(&w, meta("a", None, going)), Effects::default());
        assert_eq!(g.blocking("a"), ["b"]);
        assert_eq!(g.observe(&w, meta("b", Some(("a", false)), json!({}))).delete, ["a"]);
        assert!(g.blocking("a").is_empty());
        assert_eq!(g.remove("b").0.delete, ["a"]);
    }

    #[test]
    fn an_owner_elsewhere_is_reported() {
        let (w, mut g) = (watched(), Graph::default());
        let mut a = meta("a", None, json!({}));
        a.namespace = Some("other".into());
        g.observe(&w, a);
        let effects = g.observe(&w, meta("b", Some(("a", true)), json!({})));
        assert_eq!(effects.foreign[0].0, "b");
        assert_eq!(effects.delete, ["b"]);
        assert!(!g.owners_are_fine(g.get("b").unwrap()));
    }

    #[test]
    fn verdicts() {
        let o = |list: &[(&str, Owner)]| list.iter().map(|(u, o)| (u.to_string(), *o)).collect::<Vec<_>>();
        assert_eq!(verdict(&[], true), Verdict::Keep);
        assert_eq!(verdict(&o(&[("a", Owner::Solid)]), false), Verdict::Keep);
        let mixed = o(&[("a", Owner::Solid), ("b", Owner::Dangling)]);
        assert_eq!(verdict(&mixed, false), Verdict::Release(vec!["b".into()]));
        assert_eq!(verdict(&o(&[("b", Owner::Dangling)]), true), Verdict::Delete);
        assert_eq!(verdict(&o(&[("b", Owner::Waiting)]), true), Verdict::DeleteForeground);
        assert_eq!(verdict(&o(&[("b", Owner::Waiting)]), false), Verdict::Delete);
    }
}
