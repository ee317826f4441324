//! IPv4 and IPv6: rules of both are alike, in a table each.

use std::net::IpAddr;

use ipnet::IpNet;

/// One of the two.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    #[default]
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both.
    pub const ALL: [Family; 2] = [Family::V4, Family::V6];

    /// That of an address.
    pub fn of(ip: IpAddr) -> Family {
        if ip.is_ipv4() { Family::V4 } else { Family::V6 }
    }

    /// Whether a network is of it.
    pub fn has(self, net: &IpNet) -> bool {
        Family::of(net.addr()) == self
    }

    /// The first network that is of it.
    pub fn first(self, nets: &[IpNet]) -> Option<IpNet> {
        nets.iter().copied().find(|net| self.has(net))
    }

    /// nft's word, for tables and in matches.
    pub fn ip(self) -> &'static str {
        match self {
            Family::V4 => "ip",
            Family::V6 => "ip6",
        }
    }

    /// nft's type of addresses.
    pub fn address(self) -> &'static str {
        match self {
            Family::V4 => "ipv4_addr",
            Family::V6 => "ipv6_addr",
        }
    }

    /// The machine's own way to itself.
    pub fn loopback(self) -> &'static str {
        match self {
            Family::V4 => "127.0.0.0/8",
            Family::V6 => "::1",
        }
    }

    /// As an EndpointSlice's `addressType` and a Service's `ipFamilies` have it.
    pub fn name(self) -> &'static str {
        match self {
            Family::V4 => "IPv4",
            Family::V6 => "IPv6",
        }
    }
}
