//! The device `kube-ipvs0`, which makes services' addresses the node's own, and the node's other addresses.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::net::IpAddr;
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, bail};
use ipnet::IpNet;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::family::Family;

/// Its name.
pub const DEVICE: &str = "kube-ipvs0";

/// Addresses of this network namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Addresses {
    /// Of the device.
    pub bound: BTreeSet<IpAddr>,
    /// Of all others.
    pub own: BTreeSet<IpAddr>,
}

impl Addresses {
    /// Those on which node ports answer: all, or those in `nets`. Loopback counts only where it is
    /// named; networks of one family do not narrow the other.
    pub fn node_ports(&self, nets: &[IpNet]) -> BTreeSet<IpAddr> {
        let wanted = |ip: &&IpAddr| {
            let mut nets = nets.iter().filter(|net| Family::of(**ip).has(net)).peekable();
            if nets.peek().is_none() { !ip.is_loopback() } else { nets.any(|net| net.contains(*ip)) }
        };
        let link_local = |ip: &IpAddr| matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local());
        self.own.iter().filter(wanted).copied().filter(|ip| !link_local(ip)).collect()
    }
}

/// Reads all addresses.
pub fn addresses() -> std::io::Result<Addresses> {
    let mut found = Addresses::default();
    for interface in nix::ifaddrs::getifaddrs()? {
        let Some(address) = interface.address else { continue };
        let v4 = address.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()));
        let v6 = || address.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip()));
        let Some(ip) = v4.or_else(v6) else { continue };
        let set = if interface.interface_name == DEVICE { &mut found.bound } else { &mut found.own };
        set.insert(ip);
    }
    Ok(found)
}

/// Whether the device is there.
pub fn exists() -> bool {
    nix::net::if_::if_nametoindex(Path::new(DEVICE)).is_ok()
}

/// Makes the device where it is missing. It stays down: addresses are the node's own all the same.
pub async fn ensure() -> anyhow::Result<()> {
    if exists() {
        return Ok(());
    }
    ip(&format!("link add {DEVICE} type dummy\n"), false).await
}

/// Removes the device with its addresses.
pub async fn remove() -> anyhow::Result<()> {
    if exists() { ip(&format!("link del {DEVICE}\n"), false).await } else { Ok(()) }
}

/// Gives the device the addresses in `wanted` that it has not, and takes those that it has and that neither are wanted
/// nor in `excluded`.
pub async fn bind(
    bound: &BTreeSet<IpAddr>,
    wanted: &BTreeSet<IpAddr>,
    excluded: &[IpNet],
) -> anyhow::Result<()> {
    let script = script(bound, wanted, excluded);
    if script.is_empty() { Ok(()) } else { ip(&script, true).await }
}

fn script(bound: &BTreeSet<IpAddr>, wanted: &BTreeSet<IpAddr>, excluded: &[IpNet]) -> String {
    let mut script = String::new();
    let full = |ip: &IpAddr| IpNet::from(*ip);
    for ip in wanted.difference(bound) {
        let _ = writeln!(script, "addr add {} dev {DEVICE}", full(ip));
    }
    let link_local = |ip: &IpAddr| matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local());
    let stays = |ip: &IpAddr| link_local(ip) || excluded.iter().any(|net| net.contains(ip));
    for ip in bound.difference(wanted).filter(|ip| !stays(ip)) {
        let _ = writeln!(script, "addr del {} dev {DEVICE}", full(ip));
    }
    script
}

/// Runs a script of the `ip` program's. With `go_on` a line that fails does not keep those after it from being run.
async fn ip(script: &str, go_on: bool) -> anyhow::Result<()> {
    let mut child = Command::new("ip")
        .args(if go_on { &["-force", "-batch", "-"][..] } else { &["-batch", "-"] })
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("ip (Debian package iproute2)")?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(script.as_bytes()).await?;
    }
    let output = child.wait_with_output().await?;
    if !output.status.success() {
        bail!("ip: {}", String::from_utf8_lossy(&output.stderr).lines().next().unwrap_or_default());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ips(list: &[&str]) -> BTreeSet<IpAddr> {
        list.iter().map(|ip| ip.parse().unwrap()).collect()
    }

    #[test]
    fn addresses_come_and_go() {
        let excluded = ["192.0.2.0/24".parse().unwrap()];
        let bound = ips(&["10.0.0.1", "10.0.0.2", "192.0.2.1", "fe80::1"]);
        let text = script(&bound, &ips(&["10.0.0.1", "10.0.0.3", "fd00::1"]), &excluded);
        assert_eq!(
            text,
            "addr add 10.0.0.3/32 dev kube-ipvs0\naddr add fd00::1/128 dev kube-ipvs0\naddr del 10.0.0.2/32 dev kube-ipvs0\n"
        );
        assert_eq!(script(&bound, &bound, &excluded), "");
    }

    #[test]
    fn node_ports_answer_where_they_should() {
        let addresses = Addresses {
            bound: ips(&["10.0.0.1"]),
            own: ips(&["127.0.0.1", "20.0.0.5", "172.16.0.1", "::1", "fe80::1", "fd02::5"]),
        };
        assert_eq!(addresses.node_ports(&[]), ips(&["20.0.0.5", "172.16.0.1", "fd02::5"]));
        let nets = ["20.0.0.0/24".parse().unwrap(), "127.0.0.0/8".parse().unwrap()];
        assert_eq!(addresses.node_ports(&nets), ips(&["20.0.0.5", "127.0.0.1", "fd02::5"]));
    }
}
