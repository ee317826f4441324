//! Which resources there are: built-in kinds and custom ones behind one interface, [`Resource`].

mod request;
mod resource;
mod show;
mod strategy;
mod versions;

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use foldhash::fast::RandomState;
use pilothouse_apimachinery::json::Value;
use pilothouse_apimachinery::version::{NEWEST, Release};

pub use resource::{Resource, Subresource};
pub use show::partial_metadata;

use crate::kinds;

/// All resources of a server. Immutable and cheap to copy: a change makes a new one.
#[derive(Clone)]
pub struct Scheme {
    release: Release,
    resources: Arc<Resources>,
}

struct Resources {
    /// By group, version, plural.
    sorted: Vec<Arc<Resource>>,
    /// By group, then plural. Every request looks several resources up.
    index: HashMap<Arc<str>, HashMap<Arc<str>, Versions, RandomState>, RandomState>,
}

/// A resource in its versions.
struct Versions {
    all: Vec<Arc<Resource>>,
    hub: Arc<Resource>,
}

impl Resources {
    fn new(mut resources: Vec<Arc<Resource>>) -> Arc<Resources> {
        resources.sort_by(|a, b| a.path().cmp(&b.path()));
        let mut all: HashMap<(Arc<str>, Arc<str>), Vec<Arc<Resource>>> = HashMap::new();
        for r in &resources {
            all.entry((r.group.clone(), r.plural.clone())).or_default().push(r.clone());
        }
        let mut index: HashMap<Arc<str>, HashMap<_, _, _>, _> = HashMap::default();
        for ((group, plural), versions) in &all {
            let Some(first) = versions.first() else { continue };
            let (hub_group, hub_version) = first.hub_version();
            // A custom resource's storage version need not be served: any other will do then.
            let hub = all
                .get(&(hub_group.into(), plural.clone()))
                .and_then(|versions| versions.iter().find(|r| &*r.version == hub_version))
                .unwrap_or(first);
            let versions = Versions { all: versions.clone(), hub: hub.clone() };
            index.entry(group.clone()).or_default().insert(plural.clone(), versions);
        }
        Arc::new(Resources { sorted: resources, index })
    }

    fn versions(&self, group: &str, plural: &str) -> Option<&Versions> {
        self.index.get(group)?.get(plural)
    }
}

/// The built-in resources of a release, made once.
fn built_in(release: Release) -> &'static Arc<Resources> {
    static V1_20: OnceLock<Arc<Resources>> = OnceLock::new();
    static LATEST: OnceLock<Arc<Resources>> = OnceLock::new();
    let (cell, release) = if release == Release::V1_20 { (&V1_20, release) } else { (&LATEST, NEWEST) };
    cell.get_or_init(|| {
        Resources::new(
            kinds::all().flat_map(|kind| Resource::built_in(kind, release)).map(Arc::new).collect(),
        )
    })
}

impl Scheme {
    /// The built-in resources of a release.
    pub fn new(release: Release) -> Scheme {
        Scheme { release, resources: built_in(release).clone() }
    }

    /// The scheme in which a built-in resource is served where `serve` says so, which is given its say of every one
    /// that the release knows.
    pub fn restricted(&self, serve: impl Fn(&Resource) -> bool) -> Scheme {
        let all = kinds::all().flat_map(|kind| Resource::built_in(kind, self.release));
        let resources = all
            .map(|mut r| {
                r.served = r.schema().is_some() && serve(&r);
                Arc::new(r)
            })
            .collect();
        Scheme { release: self.release, resources: Resources::new(resources) }
    }

    /// The release.
    pub fn release(&self) -> Release {
        self.release
    }

    /// The resource that requests name by group, version and plural, if it is served.
    pub fn resource(&self, group: &str, version: &str, plural: &str) -> Option<Arc<Resource>> {
        let mut versions = self.resources.versions(group, plural)?.all.iter();
        versions.find(|r| &*r.version == version && r.served).cloned()
    }

    /// The hub version of a resource, by a group it is served in.
    pub fn hub(&self, group: &str, plural: &str) -> Option<Arc<Resource>> {
        Some(self.resources.versions(group, plural)?.hub.clone())
    }

    /// The resource of a kind, if it is served. Of several (no kind has that today), the one without a slash.
    pub fn by_kind(&self, group: &str, version: &str, kind: &str) -> Option<Arc<Resource>> {
        self.group_version(group, version).find(|r| &*r.kind == kind).cloned()
    }

    /// The served resources of a group and version, by plural.
    pub fn group_version(&self, group: &str, version: &str) -> impl Iterator<Item = &Arc<Resource>> {
        let sorted = &self.resources.sorted;
        let start = sorted.partition_point(|r| (&*r.group, &*r.version) < (group, version));
        let rest = sorted[start..].iter();
        rest.take_while(move |r| &*r.group == group && &*r.version == version).filter(|r| r.served)
    }

    /// All served resources, by group, version and plural.
    pub fn resources(&self) -> impl Iterator<Item = &Arc<Resource>> {
        self.resources.sorted.iter().filter(|r| r.served)
    }

    /// One resource for each that is stored: in its hub version.
    pub fn hubs(&self) -> impl Iterator<Item = &Arc<Resource>> {
        self.resources.sorted.iter().filter(|r| {
            let (group, version) = r.hub_version();
            r.is_stored() && &*r.group == group && &*r.version == version && self.is_served(r)
        })
    }

    /// Whether a resource is served in any version.
    fn is_served(&self, hub: &Resource) -> bool {
        hub.served
            || self.resources().any(|r| r.plural == hub.plural && r.hub_version() == hub.path_version())
    }

    /// The scheme with the resources of a CustomResourceDefinition (in version v1), in place of those it had before.
    /// Without new ones where it is not established.
    pub fn with_crd(&self, crd: &Value) -> Scheme {
        let group = pilothouse_apimachinery::json::str_at(crd, &["spec", "group"]);
        let plural = pilothouse_apimachinery::json::str_at(crd, &["spec", "names", "plural"]);
        let mut resources = self.others(group, plural);
        resources.extend(Resource::custom(crd, self.release).into_iter().map(Arc::new));
        Scheme { release: self.release, resources: Resources::new(resources) }
    }

    /// The scheme without the resources of a CustomResourceDefinition.
    pub fn without_crd(&self, group: &str, plural: &str) -> Scheme {
        Scheme { release: self.release, resources: Resources::new(self.others(group, plural)) }
    }

    fn others(&self, group: &str, plural: &str) -> Vec<Arc<Resource>> {
        let keep = |r: &&Arc<Resource>| !(r.is_custom() && &*r.group == group && &*r.plural == plural);
        self.resources.sorted.iter().filter(keep).cloned().collect()
    }
}

#[cfg(test)]
mod tests;
