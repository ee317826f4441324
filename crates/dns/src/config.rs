//! From flags to a typed configuration.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use pilothouse_component_base::flags::Flags;

/// What the DNS server was asked to do.
#[derive(Debug, Clone)]
pub struct Config {
    /// Credentials for the API server.
    pub kubeconfig: PathBuf,
    /// Where to answer.
    pub bind_address: IpAddr,
    /// UDP and TCP port.
    pub port: u16,
    /// The cluster's domain, without dots at its ends, in lower case.
    pub domain: String,
    /// Seconds that answers may be kept.
    pub ttl: u32,
    /// Who is asked for other names.
    pub upstream: Vec<SocketAddr>,
    /// Where `/metrics` and `/healthz` are.
    pub metrics_bind_address: Option<SocketAddr>,
}

impl Config {
    /// Reads the flags. The error is one line that names the flag.
    pub fn from_flags(flags: &Flags) -> Result<Config, String> {
        let bind = flags.string("bind-address");
        let bind_address: IpAddr = bind.parse().map_err(|e| format!("--bind-address={bind}: {e}"))?;
        let port =
            u16::try_from(flags.int("port")).map_err(|_| format!("--port={}", flags.string("port")))?;
        let given = flags.strings("upstream");
        let upstream = if given.is_empty() {
            let text = std::fs::read_to_string(flags.string("resolv-conf")).unwrap_or_default();
            name_servers(&text)
        } else {
            given
                .iter()
                .map(|s| server(s).ok_or_else(|| format!("--upstream={s}: not an address")))
                .collect::<Result<_, _>>()?
        };
        // Asking ourselves would go round in circles.
        let own = SocketAddr::new(bind_address, port);
        let upstream = upstream.into_iter().filter(|u| *u != own).collect();
        let metrics_bind_address = match flags.opt("metrics-bind-address") {
            None => None,
            Some(a) => Some(a.parse().map_err(|e| format!("--metrics-bind-address={a}: {e}"))?),
        };
        let kubeconfig = flags.opt("kubeconfig").ok_or("--kubeconfig is required")?;
        Ok(Config {
            kubeconfig: PathBuf::from(kubeconfig),
            bind_address,
            port,
            domain: flags.string("cluster-domain").trim_matches('.').to_lowercase(),
            ttl: u32::try_from(flags.int("ttl")).map_err(|_| "--ttl: not a number of seconds".to_string())?,
            upstream,
            metrics_bind_address,
        })
    }
}

fn server(text: &str) -> Option<SocketAddr> {
    text.parse().ok().or_else(|| text.parse::<IpAddr>().ok().map(|ip| SocketAddr::new(ip, 53)))
}

/// The `nameserver` lines of a resolv.conf(5).
fn name_servers(text: &str) -> Vec<SocketAddr> {
    text.lines()
        .filter_map(|l| l.trim().strip_prefix("nameserver"))
        .filter_map(|rest| rest.split_whitespace().next().and_then(server))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_resolv_conf() {
        let found = name_servers("# c\nsearch x\nnameserver 192.0.2.1\nnameserver  fd00::1 \nnameserver x\n");
        assert_eq!(found, ["192.0.2.1:53".parse().unwrap(), "[fd00::1]:53".parse().unwrap()]);
    }
}
