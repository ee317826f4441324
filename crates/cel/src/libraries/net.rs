//! `ip()` and `cidr()`.

use std::net::IpAddr;

use pilothouse_apimachinery::names;

use crate::eval::{Error, Evaluated};
use crate::value::{Native, Value};

fn address(text: &str) -> Result<IpAddr, Error> {
    let why = |why: &str| {
        Error::other(format!("IP Address {text:?} parse error during conversion from string: {why}"))
    };
    if text.contains('%') {
        return Err(why("IP addresses with zones are not allowed"));
    }
    match text.parse::<IpAddr>() {
        Ok(IpAddr::V6(v6)) if v6.to_ipv4_mapped().is_some() => {
            Err(why("IPv4-mapped IPv6 addresses are not allowed"))
        }
        Ok(ip) => Ok(ip),
        Err(_) => Err(why("unable to parse IP")),
    }
}

fn network(text: &str) -> Result<(IpAddr, u8), Error> {
    names::parse_cidr(text).ok_or_else(|| {
        Error::other(format!(
            "network address parse error during conversion from string: network address {text:?}"
        ))
    })
}

fn mask(ip: IpAddr, bits: u8) -> IpAddr {
    match ip {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(bits.min(32))).unwrap_or(0);
            IpAddr::V4((u32::from(v4) & mask).into())
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(bits.min(128))).unwrap_or(0);
            IpAddr::V6((u128::from(v6) & mask).into())
        }
    }
}

/// By a name of its own.
pub fn global<'a>(name: &str, args: &[Value<'a>]) -> Option<Evaluated<'a>> {
    let [Value::String(text)] = args else { return None };
    Some(match name {
        "ip" => address(text).map(|ip| Value::native(Native::Ip(ip))),
        "isIP" => Ok(Value::Bool(address(text).is_ok())),
        "ip.isCanonical" => address(text).map(|ip| Value::Bool(ip.to_string() == **text)),
        "cidr" => network(text).map(|(ip, bits)| Value::native(Native::Cidr(ip, bits))),
        "isCIDR" => Ok(Value::Bool(network(text).is_ok())),
        _ => return None,
    })
}

/// On an address.
pub fn of_ip<'a>(name: &str, ip: IpAddr) -> Option<Evaluated<'a>> {
    let (link_unicast, link_multicast) = match ip {
        IpAddr::V4(v4) => (v4.is_link_local(), v4.octets()[..3] == [224, 0, 0]),
        IpAddr::V6(v6) => (v6.is_unicast_link_local(), v6.segments()[0] & 0xff0f == 0xff02),
    };
    let broadcast = matches!(ip, IpAddr::V4(v4) if v4.is_broadcast());
    Some(Ok(match name {
        "family" => Value::Int(if ip.is_ipv4() { 4 } else { 6 }),
        "isUnspecified" => Value::Bool(ip.is_unspecified()),
        "isLoopback" => Value::Bool(ip.is_loopback()),
        "isLinkLocalUnicast" => Value::Bool(link_unicast),
        "isLinkLocalMulticast" => Value::Bool(link_multicast),
        "isGlobalUnicast" => Value::Bool(
            !(ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() || link_unicast || broadcast),
        ),
        _ => return None,
    }))
}

/// On a network.
pub fn of_cidr<'a>(name: &str, ip: IpAddr, bits: u8, rest: &[Value<'a>]) -> Option<Evaluated<'a>> {
    let same = |other: IpAddr| other.is_ipv4() == ip.is_ipv4() && mask(other, bits) == mask(ip, bits);
    let native = match rest.first() {
        Some(Value::Native(n)) => Some((**n).clone()),
        _ => None,
    };
    Some(match (name, rest) {
        ("ip", []) => Ok(Value::native(Native::Ip(ip))),
        ("masked", []) => Ok(Value::native(Native::Cidr(mask(ip, bits), bits))),
        ("prefixLength", []) => Ok(Value::Int(bits.into())),
        ("containsIP", [Value::String(text)]) => address(text).map(|ip| Value::Bool(same(ip))),
        ("containsCIDR", [Value::String(text)]) => {
            network(text).map(|(other, n)| Value::Bool(n >= bits && same(other)))
        }
        ("containsIP", [_]) => match native {
            Some(Native::Ip(other)) => Ok(Value::Bool(same(other))),
            _ => return None,
        },
        ("containsCIDR", [_]) => match native {
            Some(Native::Cidr(other, n)) => Ok(Value::Bool(n >= bits && same(other))),
            _ => return None,
        },
        _ => return None,
    })
}
