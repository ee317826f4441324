//! `--runtime-config`: which groups, versions and resources are served
//! (<https://kubernetes.io/docs/reference/using-api/#enabling-or-disabling>).

use std::collections::BTreeMap;

use pilothouse_api::scheme::{Resource, Scheme};
use pilothouse_apimachinery::version::Release;

/// What `--runtime-config` switches on and off; the more specific entry wins.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RuntimeConfig {
    /// `api/all`, then `api/ga`, `api/beta`, `api/alpha`.
    all: Option<bool>,
    stages: BTreeMap<&'static str, bool>,
    /// `v1`, `apps/v1`.
    versions: BTreeMap<String, bool>,
    /// `extensions/v1beta1/ingresses`.
    resources: BTreeMap<String, bool>,
}

/// How mature a version is, as its name says.
fn stage(version: &str) -> &'static str {
    if version.contains("alpha") {
        "alpha"
    } else if version.contains("beta") {
        "beta"
    } else {
        "ga"
    }
}

/// A switch's value: Go's booleans, and nothing for yes.
fn switch(key: &str, value: &str) -> Result<bool, String> {
    match value {
        "" | "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err(format!(
            "invalid value of {key}: {value}, err: strconv.ParseBool: parsing {value:?}: invalid syntax"
        )),
    }
}

impl RuntimeConfig {
    /// Reads the flag's entries. Errors are Kubernetes'.
    pub fn parse(given: &BTreeMap<String, String>, release: Release) -> Result<RuntimeConfig, String> {
        if given.len() == 1 && given.get("api/all").is_some_and(|v| v == "false") {
            return Err("invalid key with only api/all=false".into());
        }
        let mut config = RuntimeConfig::default();
        let mut unknown = Vec::new();
        let scheme = Scheme::new(release);
        for (key, value) in given {
            let on = switch(key, value)?;
            let parts: Vec<&str> = key.split('/').collect();
            match parts.as_slice() {
                ["api", "all"] => config.all = Some(on),
                // Long gone, and harmless.
                ["api", "legacy"] => {}
                ["api", stage @ ("ga" | "beta" | "alpha")] => {
                    let known = ["ga", "beta", "alpha"].into_iter().find(|s| s == stage);
                    config.stages.extend(known.map(|s| (s, on)));
                }
                ["v1"] => {
                    config.versions.insert(key.clone(), on);
                }
                [group, rest @ ..] if (1..=2).contains(&rest.len()) => {
                    let core = *group == "api" && rest[0] == "v1";
                    if !core && !known_group(&scheme, group) {
                        unknown.push(group.to_string());
                    }
                    let key = key.strip_prefix("api/").unwrap_or(key).to_string();
                    let into = if rest.len() == 1 { &mut config.versions } else { &mut config.resources };
                    into.insert(key, on);
                }
                _ => return Err(format!("runtime-config invalid key {key}")),
            }
        }
        if !unknown.is_empty() {
            return Err(format!("unknown api groups {}", unknown.join(",")));
        }
        Ok(config)
    }

    /// Whether nothing is changed.
    pub fn is_default(&self) -> bool {
        *self == RuntimeConfig::default()
    }

    /// Whether a resource is to be served. What the release serves by itself is in [`Resource::served`].
    pub fn enables(&self, resource: &Resource) -> bool {
        let version = &*resource.api_version;
        let of_resource = self.resources.get(&format!("{version}/{}", resource.plural));
        let of_version = self.versions.get(version);
        let of_stage = self.stages.get(stage(&resource.version));
        let of_all = self.all.as_ref();
        // Only versions behind a stage's switch are off by themselves; others a release does not serve it does not have.
        let can = resource.served
            || stage(&resource.version) == "alpha"
            || (of_version.is_some() || of_resource.is_some());
        can && of_resource.or(of_version).or(of_stage).or(of_all).copied().unwrap_or(resource.served)
    }
}

fn known_group(scheme: &Scheme, group: &str) -> bool {
    scheme.resources().any(|r| &*r.group == group)
        // Groups that have alpha versions only, or nothing but a place in v1.20's table.
        || matches!(group, "internal.apiserver.k8s.io" | "settings.k8s.io" | "auditregistration.k8s.io" | "extensions")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<RuntimeConfig, String> {
        let entries = text.split(',').filter(|s| !s.is_empty()).map(|kv| {
            let (k, v) = kv.split_once('=').unwrap_or((kv, ""));
            (k.to_string(), v.to_string())
        });
        RuntimeConfig::parse(&entries.collect(), Release::V1_20)
    }

    fn served(text: &str) -> Vec<String> {
        let config = parse(text).unwrap();
        let scheme = Scheme::new(Release::V1_20).restricted(|r| config.enables(r));
        let mut versions: Vec<String> = scheme.resources().map(|r| r.api_version.to_string()).collect();
        versions.dedup();
        versions
    }

    #[test]
    fn nothing_given_changes_nothing() {
        let scheme = Scheme::new(Release::V1_20);
        let mut usual: Vec<String> = scheme.resources().map(|r| r.api_version.to_string()).collect();
        usual.dedup();
        assert_eq!(served(""), usual);
        assert!(parse("").unwrap().is_default());
        assert_eq!(served("api/legacy=true"), usual);
    }

    #[test]
    fn the_more_specific_wins() {
        let on = served("api/beta=false,batch/v1beta1=true");
        assert!(on.contains(&"batch/v1beta1".to_string()) && on.contains(&"apps/v1".to_string()));
        assert!(!on.contains(&"policy/v1beta1".to_string()));
        let on = served("api/all=false,v1=true,apps/v1=true");
        assert_eq!(on, ["v1", "apps/v1"]);
        let on = served("api/alpha=true");
        assert!(on.contains(&"node.k8s.io/v1alpha1".to_string()), "{on:?}");
        let config = parse("extensions/v1beta1/ingresses=false").unwrap();
        let scheme = Scheme::new(Release::V1_20).restricted(|r| config.enables(r));
        assert!(scheme.resource("extensions", "v1beta1", "ingresses").is_none());
        assert!(scheme.resource("networking.k8s.io", "v1", "ingresses").is_some());
    }

    #[test]
    fn refuses_what_cannot_be() {
        assert_eq!(parse("api/all=false").unwrap_err(), "invalid key with only api/all=false");
        assert_eq!(parse("a/b/c/d=true").unwrap_err(), "runtime-config invalid key a/b/c/d");
        assert_eq!(parse("nope.io/v1=true").unwrap_err(), "unknown api groups nope.io");
        assert!(parse("apps/v1=maybe").unwrap_err().starts_with("invalid value of apps/v1: maybe"));
    }
}
