//! What the CNI plug-ins leave behind when a pod's network was not taken down in order: namespaces, cached results
//! and iptables chains. Ours carry our network's name.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use nix::mount::{MntFlags, umount2};
use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

/// The name in our CNI configuration.
const NETWORK: &str = "pilothouse";
/// Where libcni caches what it made.
const CACHES: &[&str] = &["/var/lib/cni/results", "/var/lib/cni/cache/results"];
/// Folders that the plug-ins make, innermost first; they are removed where they are empty.
const FOLDERS: &[&str] =
    &["/var/lib/cni/results", "/var/lib/cni/cache/results", "/var/lib/cni/cache", "/var/lib/cni"];

/// A cached result: its file, and the network namespaces that it names.
pub(super) struct Leftover {
    file: PathBuf,
    namespaces: BTreeSet<PathBuf>,
}

/// What is left of our network.
pub(super) fn leftover_namespaces() -> Vec<Leftover> {
    let files = CACHES.iter().filter_map(|dir| fs::read_dir(dir).ok()).flatten().flatten().map(|e| e.path());
    files
        .filter_map(|file| {
            let cached: Value = serde_json::from_slice(&fs::read(&file).ok()?).ok()?;
            Some(Leftover { namespaces: namespaces(&cached)?, file })
        })
        .collect()
}

/// The namespaces of a cached result of our network; `None` for another network's.
fn namespaces(cached: &Value) -> Option<BTreeSet<PathBuf>> {
    if cached["networkName"] != NETWORK {
        return None;
    }
    let interfaces = cached["result"]["interfaces"].as_array().map(Vec::as_slice).unwrap_or_default();
    let sandboxes = interfaces.iter().filter_map(|i| i["sandbox"].as_str());
    Some(sandboxes.map(PathBuf::from).filter(|p| is_namespace_file(p)).collect())
}

/// Whether a path is one that a runtime gives a pod's network namespace; nothing else is ever removed.
fn is_namespace_file(path: &Path) -> bool {
    let in_run =
        path.parent().is_some_and(|d| d == Path::new("/run/netns") || d == Path::new("/var/run/netns"));
    in_run && path.file_name().is_some_and(|n| n.to_string_lossy().starts_with("cni-"))
}

/// Removes leftovers, and our rules in iptables.
pub(super) async fn remove(leftovers: &[Leftover]) {
    for leftover in leftovers {
        for namespace in &leftover.namespaces {
            let _ = umount2(namespace, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW);
            let _ = fs::remove_file(namespace);
        }
        let _ = fs::remove_file(&leftover.file);
    }
    for dir in FOLDERS {
        let _ = fs::remove_dir(dir);
    }
    if let Some(saved) = output("iptables-save", &["-t", "nat"]).await
        && let Some(script) = removal(&saved)
    {
        restore(&script).await;
    }
    // iptables and ip6tables keep their tables when the last rule is gone.
    for family in ["ip", "ip6"] {
        if let Some(table) = output("nft", &["-j", "list", "table", family, "nat"]).await
            && is_bare(&table)
        {
            let _ = output("nft", &["delete", "table", family, "nat"]).await;
        }
    }
}

/// Input of `iptables-restore --noflush` that removes our network's rules and chains; `None` where there are none.
fn removal(saved: &str) -> Option<String> {
    let rules: Vec<&str> = saved.lines().filter(|l| l.starts_with("-A ")).collect();
    let mark = format!("name: \\\"{NETWORK}\\\"");
    let ours: Vec<&str> = rules.iter().copied().filter(|r| r.contains(&mark)).collect();
    let mut chains: BTreeSet<&str> =
        ours.iter().filter_map(|r| target(r)).filter(|c| is_own_chain(c)).collect();
    // The plug-in for host ports keeps its shared chains for ever: they go when no port of anybody is left in them.
    let others_ports =
        rules.iter().filter_map(|r| target(r)).any(|c| c.starts_with("CNI-DN-") && !chains.contains(c));
    if !others_ports {
        let declared = saved.lines().filter_map(|l| l.strip_prefix(':')?.split(' ').next());
        chains.extend(declared.filter(|c| c.starts_with("CNI-HOSTPORT-")));
    }
    if ours.is_empty() && chains.is_empty() {
        return None;
    }
    let mut script = String::from("*nat\n");
    for rule in &rules {
        let chain = rule.split(' ').nth(1).unwrap_or_default();
        if !chains.contains(chain)
            && (ours.contains(rule) || target(rule).is_some_and(|t| chains.contains(t)))
        {
            script += &format!("-D{}\n", &rule[2..]);
        }
    }
    for option in ["-F", "-X"] {
        for chain in &chains {
            script += &format!("{option} {chain}\n");
        }
    }
    script += "COMMIT\n";
    Some(script)
}

fn is_own_chain(chain: &str) -> bool {
    chain.starts_with("CNI-") && !chain.starts_with("CNI-HOSTPORT-")
}

fn target(rule: &str) -> Option<&str> {
    rule.split_once(" -j ")?.1.split(' ').next()
}

/// Whether nft's listing of a table has no rule and no chain but those that a hook calls.
fn is_bare(listing: &str) -> bool {
    let Ok(listing) = serde_json::from_str::<Value>(listing) else { return false };
    let Some(items) = listing["nftables"].as_array() else { return false };
    items.iter().all(|item| {
        item.get("metainfo").is_some() || item.get("table").is_some() || item["chain"].get("hook").is_some()
    })
}

/// What a command prints; `None` where it is not there or fails.
async fn output(program: &str, args: &[&str]) -> Option<String> {
    let output = Command::new(program).args(args).stdin(Stdio::null()).output().await.ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

async fn restore(script: &str) {
    let child = Command::new("iptables-restore")
        .args(["--noflush", "--wait"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn();
    let Ok(mut child) = child else { return };
    if let Some(mut stdin) = child.stdin.take()
        && let Err(e) = stdin.write_all(script.as_bytes()).await
    {
        tracing::warn!("iptables-restore: {e}");
    }
    match child.wait_with_output().await {
        Ok(o) if o.status.success() => {}
        Ok(o) => tracing::warn!("iptables-restore: {}", String::from_utf8_lossy(&o.stderr).trim()),
        Err(e) => tracing::warn!("iptables-restore: {e}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAVED: &str = r#"*nat
:PREROUTING ACCEPT [0:0]
:CNI-0123 - [0:0]
:CNI-4567 - [0:0]
:CNI-DN-89ab - [0:0]
:CNI-HOSTPORT-DNAT - [0:0]
:CNI-HOSTPORT-MASQ - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT
-A POSTROUTING -m comment --comment "CNI portfwd requiring masquerade" -j CNI-HOSTPORT-MASQ
-A POSTROUTING -s 10.244.0.2/32 -m comment --comment "name: \"pilothouse\" id: \"a\"" -j CNI-0123
-A POSTROUTING -s 10.5.0.2/32 -m comment --comment "name: \"other\" id: \"b\"" -j CNI-4567
-A CNI-0123 -d 10.244.0.0/24 -m comment --comment "name: \"pilothouse\" id: \"a\"" -j ACCEPT
-A CNI-4567 -d 10.5.0.0/24 -m comment --comment "name: \"other\" id: \"b\"" -j ACCEPT
-A CNI-DN-89ab -p tcp -j DNAT --to-destination 10.244.0.2:80
-A CNI-HOSTPORT-DNAT -p tcp -m comment --comment "dnat name: \"pilothouse\" id: \"a\"" -j CNI-DN-89ab
-A CNI-HOSTPORT-MASQ -m mark --mark 0x2000/0x2000 -j MASQUERADE
COMMIT
"#;

    #[test]
    fn our_chains_go_and_others_stay() {
        let script = removal(SAVED).unwrap();
        let lines: Vec<&str> = script.lines().collect();
        assert_eq!(
            lines,
            [
                "*nat",
                "-D PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT",
                "-D POSTROUTING -m comment --comment \"CNI portfwd requiring masquerade\" -j CNI-HOSTPORT-MASQ",
                "-D POSTROUTING -s 10.244.0.2/32 -m comment --comment \"name: \\\"pilothouse\\\" id: \\\"a\\\"\" -j CNI-0123",
                "-F CNI-0123",
                "-F CNI-DN-89ab",
                "-F CNI-HOSTPORT-DNAT",
                "-F CNI-HOSTPORT-MASQ",
                "-X CNI-0123",
                "-X CNI-DN-89ab",
                "-X CNI-HOSTPORT-DNAT",
                "-X CNI-HOSTPORT-MASQ",
                "COMMIT",
            ]
        );
        assert_eq!(removal("*nat\n:PREROUTING ACCEPT [0:0]\nCOMMIT\n"), None);
    }

    #[test]
    fn shared_chains_stay_for_others_ports() {
        let saved = "*nat\n:CNI-HOSTPORT-DNAT - [0:0]\n:CNI-DN-1 - [0:0]\n\
                     -A PREROUTING -j CNI-HOSTPORT-DNAT\n\
                     -A CNI-HOSTPORT-DNAT -m comment --comment \"dnat name: \\\"other\\\" id: \\\"b\\\"\" -j CNI-DN-1\nCOMMIT\n";
        assert_eq!(removal(saved), None);
    }

    #[test]
    fn namespaces_of_our_network_only() {
        let cached = |network: &str, path: &str| {
            serde_json::json!({
                "networkName": network,
                "result": {"interfaces": [{"name": "veth1"}, {"name": "eth0", "sandbox": path}]},
            })
        };
        let found = namespaces(&cached("pilothouse", "/var/run/netns/cni-1")).unwrap();
        assert_eq!(found.into_iter().collect::<Vec<_>>(), [PathBuf::from("/var/run/netns/cni-1")]);
        assert_eq!(namespaces(&cached("other", "/var/run/netns/cni-1")), None);
        assert!(namespaces(&cached("pilothouse", "/etc/passwd")).unwrap().is_empty());
    }

    #[test]
    fn a_table_with_rules_is_not_bare() {
        let chain = r#"{"chain":{"family":"ip","table":"nat","name":"POSTROUTING","hook":"postrouting"}}"#;
        let table = r#"{"metainfo":{}},{"table":{"family":"ip","name":"nat"}}"#;
        assert!(is_bare(&format!(r#"{{"nftables":[{table},{chain}]}}"#)));
        assert!(!is_bare(&format!(
            r#"{{"nftables":[{table},{chain},{{"rule":{{"chain":"POSTROUTING"}}}}]}}"#
        )));
        assert!(!is_bare(&format!(r#"{{"nftables":[{table},{{"chain":{{"name":"MINE"}}}}]}}"#)));
    }
}
