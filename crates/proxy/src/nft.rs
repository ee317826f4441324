//! The kernel's side: scripts that bring tables from one rule set to another, in one transaction each.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::IpAddr;
use std::process::Stdio;

use anyhow::{Context, bail};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::family::Family;
use crate::rules::{RuleSet, TABLE};

/// The script from `old` to `new`; from nothing, whatever the table may hold, where there is no `old`. Empty where
/// nothing changes.
pub fn script(old: Option<&RuleSet>, new: &RuleSet) -> String {
    let mut s = String::new();
    let ip = new.family.ip();
    let Some(old) = old else {
        let _ = write!(s, "table {ip} {TABLE} {{}}\ndelete table {ip} {TABLE}\nadd table {ip} {TABLE}\n");
        let empty = RuleSet::default();
        for (name, key) in &new.maps {
            let _ = writeln!(s, "add map {ip} {TABLE} {name} {{ type {key}; }}");
        }
        // Chains before rules: rules refer to chains.
        for (name, rules) in &new.base {
            match rules.first().filter(|r| r.starts_with("type ")) {
                Some(hook) => {
                    let _ = writeln!(s, "add chain {ip} {TABLE} {name} {{ {hook} }}");
                }
                None => {
                    let _ = writeln!(s, "add chain {ip} {TABLE} {name}");
                }
            }
        }
        for (name, rules) in &new.base {
            for rule in rules.iter().filter(|r| !r.starts_with("type ")) {
                let _ = writeln!(s, "add rule {ip} {TABLE} {name} {rule}");
            }
        }
        change(&mut s, &empty, new);
        return s;
    };
    change(&mut s, old, new);
    s
}

/// What services come and go by: sets, chains, elements. Elements are the last to come and the first to go.
fn change(s: &mut String, old: &RuleSet, new: &RuleSet) {
    let (ip, address) = (new.family.ip(), new.family.address());
    for (name, timeout) in new.sets.iter().filter(|(n, _)| !old.sets.contains_key(*n)) {
        let _ = writeln!(
            s,
            "add set {ip} {TABLE} {name} {{ type {address}; flags dynamic,timeout; timeout {timeout}s; }}"
        );
    }
    let changed: Vec<_> = new.chains.iter().filter(|(n, rules)| old.chains.get(*n) != Some(rules)).collect();
    for (name, _) in &changed {
        let _ = writeln!(s, "add chain {ip} {TABLE} {name}\nflush chain {ip} {TABLE} {name}");
    }
    for (name, rules) in &changed {
        for rule in *rules {
            let _ = writeln!(s, "add rule {ip} {TABLE} {name} {rule}");
        }
    }
    for ((map, key), verdict) in &old.elements {
        if new.elements.get(&(map.clone(), key.clone())) != Some(verdict) {
            let _ = writeln!(s, "delete element {ip} {TABLE} {map} {{ {key} }}");
        }
    }
    for ((map, key), verdict) in &new.elements {
        if old.elements.get(&(map.clone(), key.clone())) != Some(verdict) {
            let _ = writeln!(s, "add element {ip} {TABLE} {map} {{ {key} : {verdict} }}");
        }
    }
    let gone: Vec<_> = old.chains.keys().filter(|n| !new.chains.contains_key(*n)).collect();
    // Emptied first: a chain that another still refers to cannot be deleted.
    for name in &gone {
        let _ = writeln!(s, "flush chain {ip} {TABLE} {name}");
    }
    for name in &gone {
        let _ = writeln!(s, "delete chain {ip} {TABLE} {name}");
    }
    for name in old.sets.keys().filter(|n| !new.sets.contains_key(*n)) {
        let _ = writeln!(s, "delete set {ip} {TABLE} {name}");
    }
}

/// What the kernel has from us: a table a family.
#[derive(Debug, Default)]
pub struct Tables {
    programmed: BTreeMap<Family, RuleSet>,
    /// Whether the kernel may have something else by now.
    doubtful: bool,
}

impl Tables {
    /// Brings the kernel to `wanted`, a rule set a family, in one transaction. Whether something was changed.
    /// There is no table of IPv6 before there is a service of it: the kernel may not have it.
    pub async fn program(&mut self, mut wanted: Vec<RuleSet>) -> anyhow::Result<bool> {
        wanted.retain(|new| {
            new.family == Family::V4 || !new.elements.is_empty() || self.programmed.contains_key(&new.family)
        });
        let old = |family| self.programmed.get(family).filter(|_| !self.doubtful);
        let script: String = wanted.iter().map(|new| script(old(&new.family), new)).collect();
        if script.is_empty() {
            return Ok(false);
        }
        self.doubtful = true;
        apply(&script).await?;
        self.doubtful = false;
        let new = wanted.into_iter().map(|new| (new.family, new)).collect();
        let old = std::mem::replace(&mut self.programmed, new);
        for (family, old) in &old {
            let stale = self.programmed.get(family).map(|new| old.udp_backends_gone(new)).unwrap_or_default();
            forget_connections(&stale).await;
        }
        Ok(true)
    }

    /// The next time all of it is programmed.
    pub fn doubt(&mut self) {
        self.doubtful = true;
    }
}

/// Runs a script: all of it happens, or nothing.
pub async fn apply(script: &str) -> anyhow::Result<()> {
    let mut child = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("nft (Debian package nftables)")?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(script.as_bytes()).await?;
    }
    let output = child.wait_with_output().await?;
    if !output.status.success() {
        bail!("nft: {}", String::from_utf8_lossy(&output.stderr).lines().next().unwrap_or_default());
    }
    Ok(())
}

/// Forgets UDP connections to backends that are gone, where the `conntrack` tool is installed.
pub async fn forget_connections(stale: &[(IpAddr, u16, IpAddr)]) {
    for (service, port, backend) in stale {
        let family = if service.is_ipv4() { "ipv4" } else { "ipv6" };
        let result = Command::new("conntrack")
            .args([
                "-D",
                "-f",
                family,
                "-p",
                "udp",
                "--orig-dst",
                &service.to_string(),
                "--dport",
                &port.to_string(),
            ])
            .args(["--reply-src", &backend.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .await;
        if let Err(e) = result {
            tracing::debug!("conntrack: {e}");
            return;
        }
    }
}

/// Removes the tables.
pub async fn remove() -> anyhow::Result<()> {
    let script = |family: Family| {
        let ip = family.ip();
        format!("table {ip} {TABLE} {{}}\ndelete table {ip} {TABLE}\n")
    };
    // A kernel without IPv6 has nothing of it.
    if let Err(e) = apply(&script(Family::V6)).await {
        tracing::debug!("{e:#}");
    }
    apply(&script(Family::V4)).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(chains: &[(&str, &str)], elements: &[(&str, &str)]) -> RuleSet {
        RuleSet {
            chains: chains.iter().map(|(n, r)| (n.to_string(), vec![r.to_string()])).collect(),
            elements: elements
                .iter()
                .map(|(k, v)| (("m".to_string(), k.to_string()), v.to_string()))
                .collect(),
            ..Default::default()
        }
    }

    #[test]
    fn only_what_differs_changes_and_elements_frame_chains() {
        let old = set(&[("a", "1"), ("b", "1")], &[("x", "goto a"), ("y", "goto b")]);
        assert_eq!(script(Some(&old), &old.clone()), "");
        let new = set(&[("a", "1"), ("c", "2")], &[("x", "goto a"), ("y", "goto c")]);
        let text = script(Some(&old), &new);
        let lines: Vec<&str> = text.lines().map(|l| l.trim()).collect();
        assert_eq!(
            lines,
            [
                "add chain ip kube-proxy c",
                "flush chain ip kube-proxy c",
                "add rule ip kube-proxy c 2",
                "delete element ip kube-proxy m { y }",
                "add element ip kube-proxy m { y : goto c }",
                "flush chain ip kube-proxy b",
                "delete chain ip kube-proxy b",
            ]
        );
    }
}
