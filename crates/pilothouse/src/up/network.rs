//! The machine's network as `up` needs it: its own address, the pod network's CNI configuration, and a fence that
//! keeps service and pod addresses on this machine.

use std::net::{IpAddr, UdpSocket};
use std::process::Stdio;

use anyhow::{Context, bail};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use super::Config;
use super::layout::Layout;

/// The bridge that pods are on.
pub const BRIDGE: &str = "pilothouse0";
/// The nft table of the fence.
pub const FENCE_TABLE: &str = "pilothouse-fence";

/// The address from which this machine would talk to others: that of its default route, else the first that is not
/// loopback, else loopback.
pub fn own_address() -> anyhow::Result<IpAddr> {
    // Connecting a UDP socket sends nothing; it only asks the routing table.
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    if socket.connect("192.0.2.1:9").is_ok() {
        let ip = socket.local_addr()?.ip();
        if !ip.is_unspecified() {
            return Ok(ip);
        }
    }
    let first = nix::ifaddrs::getifaddrs()?
        .filter_map(|i| i.address.and_then(|a| a.as_sockaddr_in().map(|s| IpAddr::V4(s.ip()))))
        .find(|ip| !ip.is_loopback());
    Ok(first.unwrap_or(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST)))
}

/// This machine's name, in lower case as node names must be.
pub fn host_name() -> anyhow::Result<String> {
    let name = nix::unistd::gethostname().context("host name")?;
    Ok(name.to_string_lossy().to_lowercase())
}

/// Writes the CNI configuration: a bridge with a range of the pod network, and host ports.
pub fn write_cni_config(config: &Config, layout: &Layout) -> anyhow::Result<()> {
    let subnet = node_subnet(config.cluster_cidr);
    let conf = serde_json::json!({
        "cniVersion": "0.4.0",
        "name": "pilothouse",
        "plugins": [
            {
                "type": "bridge",
                "bridge": BRIDGE,
                "isGateway": true,
                "ipMasq": true,
                "hairpinMode": true,
                "ipam": {
                    "type": "host-local",
                    "dataDir": layout.path("containerd/cni-ipam"),
                    "ranges": [[{"subnet": subnet.to_string()}]],
                    "routes": [{"dst": "0.0.0.0/0"}],
                },
            },
            {"type": "portmap", "capabilities": {"portMappings": true}, "snat": true},
        ],
    });
    let path = layout.path("cni/10-pilothouse.conflist");
    std::fs::write(&path, serde_json::to_vec_pretty(&conf)?).with_context(|| path.display().to_string())
}

/// The first /24 of the pod network (all of it where it is smaller): the range that the controller manager gives the
/// first node.
fn node_subnet(cluster: ipnet::Ipv4Net) -> ipnet::Ipv4Net {
    if cluster.prefix_len() >= 24 { cluster } else { ipnet::Ipv4Net::new_assert(cluster.network(), 24) }
}

/// Keeps service and pod addresses on this machine. Pods' unassigned addresses are unreachable by route (the bridge's
/// own route is more specific); service addresses are routed to loopback, so that the proxy's translation gets to see
/// them even without a default route, and what it does not translate is rejected.
pub async fn fence(config: &Config) -> anyhow::Result<()> {
    run("sysctl", &["-qw", "net.ipv4.ip_forward=1"]).await?;
    run("ip", &["route", "replace", "unreachable", &config.cluster_cidr.to_string(), "metric", "4096"])
        .await?;
    let service = config.service_cidr.to_string();
    run("ip", &["route", "replace", &service, "dev", "lo", "src", &config.node_ip.to_string()]).await?;
    let family = if config.service_cidr.addr().is_ipv4() { "ip" } else { "ip6" };
    let chain = |name: &str| {
        format!(
            "chain {name} {{ type filter hook {name} priority 10; policy accept;\n\
             {family} daddr {service} meta l4proto tcp reject with tcp reset;\n{family} daddr {service} reject;\n}}\n"
        )
    };
    let rules = format!(
        "table inet {FENCE_TABLE} {{}}\ndelete table inet {FENCE_TABLE}\ntable inet {FENCE_TABLE} {{\n{}{}}}\n",
        chain("output"),
        chain("forward")
    );
    nft(&rules).await
}

/// Removes what [`fence`] and the pod network made. Goes on where something is already gone.
pub async fn unfence(service_cidr: &str, cluster_cidr: &str) {
    let _ = nft(&format!("table inet {FENCE_TABLE} {{}}\ndelete table inet {FENCE_TABLE}\n")).await;
    let _ = run("ip", &["route", "del", "unreachable", cluster_cidr, "metric", "4096"]).await;
    let _ = run("ip", &["route", "del", service_cidr, "dev", "lo"]).await;
    let _ = run("ip", &["link", "del", BRIDGE]).await;
}

/// The service network that [`fence`] routed to loopback and that holds `ip`.
pub async fn loopback_route_to(ip: &str) -> Option<String> {
    let output = Command::new("ip")
        .args(["-j", "route", "show", "dev", "lo"])
        .stdin(Stdio::null())
        .output()
        .await
        .ok()?;
    let routes: Vec<serde_json::Value> = serde_json::from_slice(&output.stdout).ok()?;
    let ip: IpAddr = ip.parse().ok()?;
    let networks = routes.iter().filter_map(|r| r["dst"].as_str());
    networks.filter(|n| n.parse::<ipnet::IpNet>().is_ok_and(|n| n.contains(&ip))).map(String::from).next()
}

/// Applies a batch of nft commands, all or nothing.
pub async fn nft(rules: &str) -> anyhow::Result<()> {
    let mut child = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("nft (Debian package nftables)")?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(rules.as_bytes()).await?;
    }
    let output = child.wait_with_output().await?;
    if !output.status.success() {
        bail!("nft: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

async fn run(program: &str, args: &[&str]) -> anyhow::Result<()> {
    let output = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .output()
        .await
        .with_context(|| program.to_string())?;
    if !output.status.success() {
        bail!("{program} {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_node_gets_the_first_range() {
        assert_eq!(node_subnet("10.244.0.0/16".parse().unwrap()).to_string(), "10.244.0.0/24");
        assert_eq!(node_subnet("10.244.7.0/26".parse().unwrap()).to_string(), "10.244.7.0/26");
    }
}
