//! From the virtual servers that are and those that should be to what has to be done. No I/O.
//!
//! A real server that is not wanted any more gets no new connections (weight 0) and is removed once its connections
//! are gone. That is read from the kernel's own counts, so that it goes on where it was after a restart of the proxy.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

/// Weight of a real server that takes connections.
pub const WEIGHT: u32 = 1;
/// A client stays with its real server (`IP_VS_SVC_F_PERSISTENT`).
pub const PERSISTENT: u32 = 0x1;
/// Set by the kernel (`IP_VS_SVC_F_HASHED`).
pub const HASHED: u32 = 0x2;
/// The scheduler `mh` looks at the client's port too (`IP_VS_SVC_F_SCHED_MH_PORT`).
pub const MH_PORT: u32 = 0x10;

/// What a virtual server listens for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// All of them.
    pub const ALL: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];

    /// IANA's number.
    pub fn number(self) -> u16 {
        match self {
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
            Protocol::Sctp => 132,
        }
    }

    /// By the name that rules have for it.
    pub fn named(name: &str) -> Option<Protocol> {
        match name {
            "tcp" => Some(Protocol::Tcp),
            "udp" => Some(Protocol::Udp),
            "sctp" => Some(Protocol::Sctp),
            _ => None,
        }
    }

    /// Whether a real server may stay until its connections are gone.
    fn graceful(self) -> bool {
        self == Protocol::Tcp
    }
}

/// A virtual server's address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// Address.
    pub ip: IpAddr,
    /// Protocol.
    pub protocol: Protocol,
    /// Port.
    pub port: u16,
}

/// How a virtual server works.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VirtualServer {
    /// `rr`, `wrr`, …
    pub scheduler: String,
    /// `IP_VS_SVC_F_…`, without [`HASHED`].
    pub flags: u32,
    /// How long a client stays with its real server, in seconds; 0 where it does not.
    pub timeout: u32,
}

/// A virtual server that should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// How it works.
    pub server: VirtualServer,
    /// Its real servers.
    pub backends: BTreeSet<SocketAddr>,
}

/// A real server that is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RealServer {
    /// Its weight.
    pub weight: u32,
    /// How many connections it has, those that are ending included.
    pub connections: u64,
}

/// A virtual server that is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Current {
    /// How it works.
    pub server: VirtualServer,
    /// Its real servers.
    pub backends: BTreeMap<SocketAddr, RealServer>,
}

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A new virtual server.
    AddServer(Key, VirtualServer),
    /// A virtual server that works otherwise now.
    UpdateServer(Key, VirtualServer),
    /// A virtual server with all that belongs to it.
    DeleteServer(Key),
    /// A new real server.
    AddBackend(Key, SocketAddr),
    /// A real server's new weight.
    Weigh(Key, SocketAddr, u32),
    /// A real server that goes.
    DeleteBackend(Key, SocketAddr),
}

/// What has to be done, and whether real servers are left that wait for their connections to end.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// In this order.
    pub changes: Vec<Change>,
    /// Look again soon.
    pub draining: bool,
}

/// Plans. Virtual servers whose addresses are in `excluded` belong to others and are left alone.
pub fn plan(current: &BTreeMap<Key, Current>, wanted: &BTreeMap<Key, Wanted>, excluded: &[IpNet]) -> Plan {
    let mut plan = Plan::default();
    let none = BTreeMap::new();
    for (key, want) in wanted {
        let is = current.get(key);
        match is {
            None => plan.changes.push(Change::AddServer(*key, want.server.clone())),
            Some(is) if is.server != want.server => {
                plan.changes.push(Change::UpdateServer(*key, want.server.clone()));
            }
            Some(_) => {}
        }
        let backends = is.map_or(&none, |c| &c.backends);
        for backend in &want.backends {
            match backends.get(backend) {
                None => plan.changes.push(Change::AddBackend(*key, *backend)),
                Some(real) if real.weight != WEIGHT => {
                    plan.changes.push(Change::Weigh(*key, *backend, WEIGHT));
                }
                Some(_) => {}
            }
        }
        for (backend, real) in backends.iter().filter(|(b, _)| !want.backends.contains(b)) {
            if !key.protocol.graceful() || real.connections == 0 {
                plan.changes.push(Change::DeleteBackend(*key, *backend));
                continue;
            }
            plan.draining = true;
            if real.weight != 0 {
                plan.changes.push(Change::Weigh(*key, *backend, 0));
            }
        }
    }
    let gone = current.keys().filter(|key| !wanted.contains_key(key));
    let ours = gone.filter(|key| !excluded.iter().any(|net| net.contains(&key.ip)));
    plan.changes.extend(ours.map(|key| Change::DeleteServer(*key)));
    plan
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(ip: &str, protocol: Protocol) -> Key {
        Key { ip: ip.parse().unwrap(), protocol, port: 80 }
    }

    fn rr() -> VirtualServer {
        VirtualServer { scheduler: "rr".into(), flags: 0, timeout: 0 }
    }

    fn at(n: u8) -> SocketAddr {
        SocketAddr::from(([10, 244, 0, n], 8080))
    }

    fn wanted(key: Key, backends: &[u8]) -> BTreeMap<Key, Wanted> {
        BTreeMap::from([(key, Wanted { server: rr(), backends: backends.iter().map(|n| at(*n)).collect() })])
    }

    fn current(key: Key, backends: &[(u8, u32, u64)]) -> BTreeMap<Key, Current> {
        let backends = backends
            .iter()
            .map(|(n, weight, connections)| {
                (at(*n), RealServer { weight: *weight, connections: *connections })
            })
            .collect();
        BTreeMap::from([(key, Current { server: rr(), backends })])
    }

    #[test]
    fn makes_what_is_missing_and_then_nothing() {
        let key = key("10.0.0.7", Protocol::Tcp);
        let plan_of = plan(&BTreeMap::new(), &wanted(key, &[2, 3]), &[]);
        assert_eq!(
            plan_of.changes,
            [Change::AddServer(key, rr()), Change::AddBackend(key, at(2)), Change::AddBackend(key, at(3))]
        );
        let same = plan(&current(key, &[(2, 1, 4), (3, 1, 0)]), &wanted(key, &[2, 3]), &[]);
        assert_eq!(same, Plan::default());
    }

    #[test]
    fn a_real_server_goes_when_its_connections_are_gone() {
        let key = key("10.0.0.7", Protocol::Tcp);
        let busy = plan(&current(key, &[(2, 1, 4), (3, 1, 0)]), &wanted(key, &[3]), &[]);
        assert_eq!(busy, Plan { changes: vec![Change::Weigh(key, at(2), 0)], draining: true });
        let still = plan(&current(key, &[(2, 0, 1), (3, 1, 0)]), &wanted(key, &[3]), &[]);
        assert_eq!(still, Plan { changes: vec![], draining: true });
        let idle = plan(&current(key, &[(2, 0, 0), (3, 1, 0)]), &wanted(key, &[3]), &[]);
        assert_eq!(idle, Plan { changes: vec![Change::DeleteBackend(key, at(2))], draining: false });
        // One that comes back meanwhile takes connections again.
        let back = plan(&current(key, &[(2, 0, 1), (3, 1, 0)]), &wanted(key, &[2, 3]), &[]);
        assert_eq!(back, Plan { changes: vec![Change::Weigh(key, at(2), 1)], draining: false });
    }

    #[test]
    fn udp_and_sctp_go_at_once() {
        for protocol in [Protocol::Udp, Protocol::Sctp] {
            let key = key("10.0.0.7", protocol);
            let plan = plan(&current(key, &[(2, 1, 4)]), &wanted(key, &[]), &[]);
            assert_eq!(plan, Plan { changes: vec![Change::DeleteBackend(key, at(2))], draining: false });
        }
    }

    #[test]
    fn others_virtual_servers_stay() {
        let (mine, others) = (key("10.0.0.7", Protocol::Tcp), key("192.0.2.1", Protocol::Tcp));
        let mut now = current(mine, &[(2, 1, 4)]);
        now.extend(current(others, &[(3, 1, 1)]));
        let excluded = ["192.0.2.0/24".parse().unwrap()];
        assert_eq!(plan(&now, &BTreeMap::new(), &excluded).changes, [Change::DeleteServer(mine)]);
        assert_eq!(
            plan(&now, &BTreeMap::new(), &[]).changes,
            [Change::DeleteServer(mine), Change::DeleteServer(others)]
        );
    }

    #[test]
    fn a_server_that_works_otherwise_is_changed() {
        let key = key("10.0.0.7", Protocol::Tcp);
        let mut want = wanted(key, &[2]);
        let sticky = VirtualServer { flags: PERSISTENT, timeout: 60, ..rr() };
        want.get_mut(&key).unwrap().server = sticky.clone();
        let plan = plan(&current(key, &[(2, 1, 0)]), &want, &[]);
        assert_eq!(plan.changes, [Change::UpdateServer(key, sticky)]);
    }
}
