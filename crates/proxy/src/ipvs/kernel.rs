//! The kernel's IPVS over generic netlink. Commands and attributes: `linux/ip_vs.h`.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use super::netlink::{Attributes, Family, attributes, u16_at, u32_at};
use super::plan::{Change, Current, HASHED, Key, PERSISTENT, Protocol, RealServer, VirtualServer, WEIGHT};

const NEW_SERVICE: u8 = 1;
const SET_SERVICE: u8 = 2;
const DEL_SERVICE: u8 = 3;
const GET_SERVICE: u8 = 4;
const NEW_DEST: u8 = 5;
const SET_DEST: u8 = 6;
const DEL_DEST: u8 = 7;
const GET_DEST: u8 = 8;
const SET_CONFIG: u8 = 12;

const SERVICE: u16 = 1;
const DEST: u16 = 2;
const TIMEOUT_TCP: u16 = 4;
const TIMEOUT_TCP_FIN: u16 = 5;
const TIMEOUT_UDP: u16 = 6;

mod service {
    pub(super) const AF: u16 = 1;
    pub(super) const PROTOCOL: u16 = 2;
    pub(super) const ADDR: u16 = 3;
    pub(super) const PORT: u16 = 4;
    pub(super) const SCHED_NAME: u16 = 6;
    pub(super) const FLAGS: u16 = 7;
    pub(super) const TIMEOUT: u16 = 8;
    pub(super) const NETMASK: u16 = 9;
}

mod dest {
    pub(super) const ADDR: u16 = 1;
    pub(super) const PORT: u16 = 2;
    pub(super) const FWD_METHOD: u16 = 3;
    pub(super) const WEIGHT: u16 = 4;
    pub(super) const U_THRESH: u16 = 5;
    pub(super) const L_THRESH: u16 = 6;
    pub(super) const ACTIVE_CONNS: u16 = 7;
    pub(super) const INACT_CONNS: u16 = 8;
    pub(super) const ADDR_FAMILY: u16 = 11;
}

const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;
/// Masquerading: answers come back through this machine.
const MASQ: u32 = 0;

/// The kernel's IPVS in this network namespace.
#[derive(Debug)]
pub struct Ipvs(Family);

impl Ipvs {
    /// Opens it; an error where the kernel has none.
    pub fn open() -> io::Result<Ipvs> {
        Family::open("IPVS").map(Ipvs)
    }

    /// All virtual servers by address, with their real servers. Those by firewall mark are left out.
    pub fn list(&mut self) -> io::Result<BTreeMap<Key, Current>> {
        let mut found = BTreeMap::new();
        for answer in self.0.dump(GET_SERVICE, &Attributes::default())? {
            let Some((key, server)) = read_server(&answer) else { continue };
            let list = self.0.dump(GET_DEST, &Attributes::default().nested(SERVICE, address(&key)))?;
            let backends = list.iter().filter_map(|answer| read_backend(answer, &key)).collect();
            found.insert(key, Current { server, backends });
        }
        Ok(found)
    }

    /// Makes one change. What is to go and is not there is gone.
    pub fn change(&mut self, change: &Change) -> io::Result<()> {
        let of = |key: &Key, attributes: Attributes| {
            Attributes::default().nested(SERVICE, address(key)).nested(DEST, attributes)
        };
        match change {
            Change::AddServer(key, server) => self.0.request(NEW_SERVICE, &whole(key, server)),
            Change::UpdateServer(key, server) => self.0.request(SET_SERVICE, &whole(key, server)),
            Change::DeleteServer(key) => {
                gone(self.0.request(DEL_SERVICE, &Attributes::default().nested(SERVICE, address(key))))
            }
            Change::AddBackend(key, at) => self.0.request(NEW_DEST, &of(key, backend(at, WEIGHT))),
            Change::Weigh(key, at, weight) => self.0.request(SET_DEST, &of(key, backend(at, *weight))),
            Change::DeleteBackend(key, at) => gone(self.0.request(DEL_DEST, &of(key, backend_address(at)))),
        }
    }

    /// Sets how long idle connections are kept; zero leaves what is.
    pub fn set_timeouts(&mut self, tcp: Duration, tcp_fin: Duration, udp: Duration) -> io::Result<()> {
        let seconds = |d: Duration| u32::try_from(d.as_secs()).unwrap_or(u32::MAX);
        let config = Attributes::default()
            .u32(TIMEOUT_TCP, seconds(tcp))
            .u32(TIMEOUT_TCP_FIN, seconds(tcp_fin))
            .u32(TIMEOUT_UDP, seconds(udp));
        self.0.request(SET_CONFIG, &config)
    }
}

/// ESRCH: no such virtual server; ENOENT: no such real server.
fn gone(result: io::Result<()>) -> io::Result<()> {
    result.or_else(|e| match e.raw_os_error() {
        Some(nix::libc::ESRCH | nix::libc::ENOENT) => Ok(()),
        _ => Err(e),
    })
}

fn family(ip: &IpAddr) -> u16 {
    if ip.is_ipv4() { AF_INET } else { AF_INET6 }
}

fn octets(ip: &IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

fn address(key: &Key) -> Attributes {
    Attributes::default()
        .u16(service::AF, family(&key.ip))
        .u16(service::PROTOCOL, key.protocol.number())
        .bytes(service::ADDR, &octets(&key.ip))
        .bytes(service::PORT, &key.port.to_be_bytes())
}

fn whole(key: &Key, server: &VirtualServer) -> Attributes {
    let mut flags = server.flags.to_ne_bytes().to_vec();
    flags.extend(u32::MAX.to_ne_bytes());
    // A client is one address: of IPv4 the mask says so, of IPv6 the prefix' length.
    let netmask = if key.ip.is_ipv4() { u32::MAX } else { 128 };
    let attributes = address(key)
        .text(service::SCHED_NAME, &server.scheduler)
        .bytes(service::FLAGS, &flags)
        .u32(service::TIMEOUT, server.timeout)
        .u32(service::NETMASK, netmask);
    Attributes::default().nested(SERVICE, attributes)
}

fn backend_address(at: &SocketAddr) -> Attributes {
    Attributes::default()
        .u16(dest::ADDR_FAMILY, family(&at.ip()))
        .bytes(dest::ADDR, &octets(&at.ip()))
        .bytes(dest::PORT, &at.port().to_be_bytes())
}

fn backend(at: &SocketAddr, weight: u32) -> Attributes {
    backend_address(at)
        .u32(dest::FWD_METHOD, MASQ)
        .u32(dest::WEIGHT, weight)
        .u32(dest::U_THRESH, 0)
        .u32(dest::L_THRESH, 0)
}

/// The attributes in the attribute of an answer, by type.
fn inner(answer: &[u8], kind: u16) -> Option<BTreeMap<u16, &[u8]>> {
    attributes(answer).find(|(k, _)| *k == kind).map(|(_, value)| attributes(value).collect())
}

fn read_ip(family: u16, bytes: &[u8]) -> Option<IpAddr> {
    match family {
        AF_INET => Some(Ipv4Addr::from(<[u8; 4]>::try_from(bytes.get(..4)?).ok()?).into()),
        AF_INET6 => Some(Ipv6Addr::from(<[u8; 16]>::try_from(bytes.get(..16)?).ok()?).into()),
        _ => None,
    }
}

fn read_port(bytes: &[u8]) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(..2)?.try_into().ok()?))
}

fn read_server(answer: &[u8]) -> Option<(Key, VirtualServer)> {
    let has = inner(answer, SERVICE)?;
    let number = u16_at(has.get(&service::PROTOCOL)?, 0)?;
    let key = Key {
        ip: read_ip(u16_at(has.get(&service::AF)?, 0)?, has.get(&service::ADDR)?)?,
        protocol: Protocol::ALL.into_iter().find(|p| p.number() == number)?,
        port: read_port(has.get(&service::PORT)?)?,
    };
    let scheduler = has.get(&service::SCHED_NAME)?.split(|b| *b == 0).next()?;
    let flags = u32_at(has.get(&service::FLAGS)?, 0)? & !HASHED;
    let timeout = if flags & PERSISTENT == 0 { 0 } else { u32_at(has.get(&service::TIMEOUT)?, 0)? };
    Some((key, VirtualServer { scheduler: String::from_utf8_lossy(scheduler).into_owned(), flags, timeout }))
}

fn read_backend(answer: &[u8], key: &Key) -> Option<(SocketAddr, RealServer)> {
    let has = inner(answer, DEST)?;
    // Kernels before 4.0 do not say: then it is that of the virtual server.
    let family = has.get(&dest::ADDR_FAMILY).and_then(|v| u16_at(v, 0)).unwrap_or_else(|| family(&key.ip));
    let ip = read_ip(family, has.get(&dest::ADDR)?)?;
    let number = |kind| has.get(&kind).and_then(|v| u32_at(v, 0));
    let connections = u64::from(number(dest::ACTIVE_CONNS).unwrap_or_default())
        + u64::from(number(dest::INACT_CONNS).unwrap_or_default());
    let weight = number(dest::WEIGHT)?;
    Some((SocketAddr::new(ip, read_port(has.get(&dest::PORT)?)?), RealServer { weight, connections }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_back_what_it_writes() {
        for (ip, at) in [("10.0.0.7", "10.244.0.2:8080"), ("fd00::7", "[fd01::2]:8080")] {
            let key = Key { ip: ip.parse().unwrap(), protocol: Protocol::Udp, port: 53 };
            let server = VirtualServer { scheduler: "wrr".into(), flags: PERSISTENT, timeout: 60 };
            assert_eq!(read_server(whole(&key, &server).as_slice()), Some((key, server.clone())));
            // What the kernel adds does not count; a timeout counts only for clients that stay.
            let plain = VirtualServer { flags: HASHED, ..server };
            let (_, read) = read_server(whole(&key, &plain).as_slice()).unwrap();
            assert_eq!((read.flags, read.timeout), (0, 0));
            let at: SocketAddr = at.parse().unwrap();
            let counted = backend(&at, 1).u32(dest::ACTIVE_CONNS, 2).u32(dest::INACT_CONNS, 3);
            let answer = Attributes::default().nested(DEST, counted);
            let real = RealServer { weight: 1, connections: 5 };
            assert_eq!(read_backend(answer.as_slice(), &key), Some((at, real)));
        }
    }

    #[test]
    fn answers_that_lack_something_are_left_out() {
        let by_mark = Attributes::default().nested(SERVICE, Attributes::default().u16(service::AF, AF_INET));
        assert_eq!(read_server(by_mark.as_slice()), None);
        let key = Key { ip: Ipv4Addr::LOCALHOST.into(), protocol: Protocol::Tcp, port: 1 };
        let cut = Attributes::default().nested(DEST, Attributes::default().bytes(dest::ADDR, &[1, 2]));
        assert_eq!(read_backend(cut.as_slice(), &key), None);
    }
}
