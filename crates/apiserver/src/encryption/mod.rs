//! Encryption at rest: `--encryption-provider-config`, and the store that it lies around.

pub mod store;
pub mod transform;

use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use pilothouse_api::scheme::Scheme;
use pilothouse_apimachinery::version::Release;
use serde::Deserialize;

use self::transform::Transformer;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct File {
    #[serde(default)]
    kind: String,
    #[serde(default)]
    api_version: String,
    #[serde(default)]
    resources: Vec<Rule>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Rule {
    #[serde(default)]
    resources: Vec<String>,
    #[serde(default)]
    providers: Vec<Provider>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Provider {
    aesgcm: Option<Keys>,
    aescbc: Option<Keys>,
    secretbox: Option<Keys>,
    identity: Option<serde_yaml_ng::Value>,
    kms: Option<serde_yaml_ng::Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Keys {
    #[serde(default)]
    keys: Vec<Key>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Key {
    name: String,
    secret: String,
}

/// Resources whose values are encrypted alike. The first transformer writes, all read.
pub struct Encrypted {
    /// What stands in keys of the store behind the root: `secrets/`; empty for everything.
    prefixes: Vec<String>,
    transformers: Vec<Transformer>,
}

impl Encrypted {
    /// Whether a key (without the root) is of one of the resources.
    fn has(&self, key: &str) -> bool {
        self.prefixes.iter().any(|p| key.starts_with(p.as_str()))
    }
}

/// Reads an `EncryptionConfiguration`. Errors are Kubernetes', with the file in front, and show no secret.
pub fn load(file: &Path, release: Release) -> Result<Vec<Encrypted>, String> {
    let at = |e: String| {
        format!(
            "error while parsing encryption provider configuration file {:?}: {e}",
            file.display().to_string()
        )
    };
    let text = std::fs::read_to_string(file).map_err(|e| {
        format!("error opening encryption provider configuration file {:?}: {e}", file.display().to_string())
    })?;
    parse(&text, release).map_err(at)
}

fn parse(text: &str, release: Release) -> Result<Vec<Encrypted>, String> {
    // What serde says of a wrong value may show it; what is in this file is not to be shown.
    let file: File = serde_yaml_ng::from_str(text).map_err(|e| match e.location() {
        Some(l) => format!("error decoding: line {}, column {}", l.line(), l.column()),
        None => "error decoding".to_string(),
    })?;
    if file.kind != "EncryptionConfiguration" && file.kind != "EncryptionConfig" {
        return Err(format!("invalid configuration kind {:?} provided", file.kind));
    }
    if !matches!(file.api_version.as_str(), "apiserver.config.k8s.io/v1" | "v1") {
        return Err(format!("invalid configuration version {:?} provided", file.api_version));
    }
    if file.resources.is_empty() {
        return Err("resources: Required value: at least one resource is required".into());
    }
    let scheme = Scheme::new(release);
    file.resources.into_iter().map(|rule| encrypted(rule, &scheme)).collect()
}

fn encrypted(rule: Rule, scheme: &Scheme) -> Result<Encrypted, String> {
    if rule.providers.is_empty() {
        return Err("providers: Required value: at least one provider is required".into());
    }
    let mut transformers = Vec::new();
    for provider in rule.providers {
        transformers.extend(of_provider(provider)?);
    }
    let prefixes = rule.resources.iter().flat_map(|name| prefixes(name, scheme)).collect();
    Ok(Encrypted { prefixes, transformers })
}

fn of_provider(provider: Provider) -> Result<Vec<Transformer>, String> {
    if provider.kms.is_some() {
        return Err("provider kms is not supported".into());
    }
    let all = [("aescbc", provider.aescbc), ("aesgcm", provider.aesgcm), ("secretbox", provider.secretbox)];
    let mut given: Vec<(&str, Keys)> = all.into_iter().filter_map(|(n, keys)| Some((n, keys?))).collect();
    match (given.pop(), given.is_empty(), provider.identity) {
        (None, _, Some(_)) => Ok(vec![Transformer::identity()]),
        (None, _, None) => Err("provider does not contain any of the expected providers: KMS, AESGCM, AESCBC, Secretbox, Identity".into()),
        (Some((name, keys)), true, None) => of_keys(name, &keys),
        _ => Err("more than one provider specified in a single element, should split into different list elements".into()),
    }
}

fn of_keys(provider: &str, keys: &Keys) -> Result<Vec<Transformer>, String> {
    if keys.keys.is_empty() {
        return Err(format!("{provider} provider has no valid keys"));
    }
    let transformer = |key: &Key| {
        if key.name.is_empty() || key.name.contains(':') {
            return Err(format!("key with invalid name {:?} provided", key.name));
        }
        if key.secret.is_empty() {
            return Err(format!("key {:?} has no provided secret", key.name));
        }
        let secret = STANDARD
            .decode(&key.secret)
            .map_err(|_| format!("could not obtain secret for named key {}: illegal base64", key.name))?;
        Transformer::new(provider, &key.name, &secret)
    };
    keys.keys.iter().map(transformer).collect()
}

/// Where the objects of a resource are that a configuration names: `secrets`, `deployments.apps`, `*.apps`, `*.*`.
fn prefixes(name: &str, scheme: &Scheme) -> Vec<String> {
    let (plural, group) = name.split_once('.').unwrap_or((name, ""));
    let of = |r: &pilothouse_api::scheme::Resource| format!("{}/", r.storage_prefix());
    match (plural, group) {
        ("*", "*") => vec![String::new()],
        ("*", group) => {
            let mut found: Vec<String> =
                scheme.hubs().filter(|h| &*h.group == group).map(|h| of(h)).collect();
            if found.is_empty() {
                found.push(format!("{group}/"));
            }
            found
        }
        _ => match scheme.hub(group, plural) {
            Some(hub) => vec![of(&hub)],
            None => vec![format!("{group}/{plural}/")],
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(providers: &str) -> String {
        format!(
            "kind: EncryptionConfiguration\napiVersion: apiserver.config.k8s.io/v1\nresources:\n- resources: [secrets, deployments.apps, widgets.e.com]\n  providers:\n{providers}"
        )
    }

    fn read(text: &str) -> Result<Vec<Encrypted>, String> {
        parse(text, Release::V1_20)
    }

    const SECRET: &str = "c2VjcmV0IGlzIHNlY3VyZQ==";

    #[test]
    fn reads_providers_in_order() {
        let all = read(&config(&format!(
            "  - aescbc: {{keys: [{{name: key2, secret: {SECRET}}}, {{name: key1, secret: {SECRET}}}]}}\n  - identity: {{}}\n"
        )))
        .unwrap();
        let prefixes: Vec<&str> = all[0].transformers.iter().map(|t| t.prefix.as_str()).collect();
        assert_eq!(prefixes, ["k8s:enc:aescbc:v1:key2:", "k8s:enc:aescbc:v1:key1:", ""]);
        assert!(
            all[0].has("secrets/default/a")
                && all[0].has("deployments/default/a")
                && all[0].has("e.com/widgets/x/y")
        );
        assert!(!all[0].has("configmaps/default/a"));
    }

    #[test]
    fn errors_show_no_secret() {
        let bad = |providers: &str| read(&config(providers)).err().unwrap();
        let e = bad("  - aescbc: {keys: [{name: k, secret: AAAA}]}\n");
        assert!(e.contains("got 3") && !e.contains("AAAA"), "{e}");
        assert!(bad("  - aescbc: {keys: [{name: k, secret: '*geheim*'}]}\n").contains("illegal base64"));
        assert!(!bad("  - aescbc: {keys: [{name: k, secret: [geheim]}]}\n").contains("geheim"));
        assert!(bad("  - aescbc: {keys: []}\n").contains("no valid keys"));
        assert!(bad("  - {}\n").contains("does not contain any of the expected providers"));
        assert!(
            bad(&format!("  - aescbc: {{keys: [{{name: k, secret: {SECRET}}}]}}\n    identity: {{}}\n"))
                .contains("more than one provider")
        );
        assert!(bad("  - kms: {name: x}\n").contains("kms is not supported"));
        assert!(read("kind: Nope\napiVersion: v1\n").err().unwrap().contains("Nope"));
    }
}
