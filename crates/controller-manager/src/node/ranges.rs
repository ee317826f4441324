//! A range of addresses cut into equal blocks, of which each node gets one.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A range in CIDR notation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cidr {
    base: u128,
    prefix: u8,
    v4: bool,
}

impl Cidr {
    /// Reads `10.0.0.0/16` or `fd00::/64`. Address bits beyond the prefix are dropped.
    pub fn parse(text: &str) -> Option<Cidr> {
        let (address, prefix) = text.trim().split_once('/')?;
        let prefix: u8 = prefix.parse().ok()?;
        let (base, v4) = match address.parse().ok()? {
            IpAddr::V4(a) => (u128::from(u32::from(a)), true),
            IpAddr::V6(a) => (u128::from(a), false),
        };
        let bits = if v4 { 32 } else { 128 };
        (prefix <= bits).then(|| Cidr { base: base & !low_bits(bits - prefix), prefix, v4 })
    }

    fn bits(&self) -> u8 {
        if self.v4 { 32 } else { 128 }
    }

    fn last(&self) -> u128 {
        self.base | low_bits(self.bits() - self.prefix)
    }

    /// Whether this is IPv4.
    pub fn is_v4(&self) -> bool {
        self.v4
    }
}

fn low_bits(n: u8) -> u128 {
    if n >= 128 { u128::MAX } else { (1 << n) - 1 }
}

impl std::fmt::Display for Cidr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match u32::try_from(self.base) {
            Ok(v4) if self.v4 => write!(f, "{}/{}", Ipv4Addr::from(v4), self.prefix),
            _ => write!(f, "{}/{}", Ipv6Addr::from(self.base), self.prefix),
        }
    }
}

/// Which blocks of a range are taken.
#[derive(Debug)]
pub struct Blocks {
    range: Cidr,
    block: u8,
    taken: BTreeSet<u128>,
    next: u128,
}

impl Blocks {
    /// A range and the prefix length of its blocks. The error says what is wrong with them.
    pub fn new(range: Cidr, block: u8) -> Result<Blocks, String> {
        if block < range.prefix || block > range.bits() || block - range.prefix > 16 {
            return Err(format!("the node range size /{block} does not suit the cluster range {range}"));
        }
        Ok(Blocks { range, block, taken: BTreeSet::new(), next: 0 })
    }

    fn shift(&self) -> u8 {
        self.range.bits() - self.block
    }

    fn count(&self) -> u128 {
        1 << (self.block - self.range.prefix)
    }

    /// The blocks that a range touches.
    fn touched(&self, cidr: &Cidr) -> std::ops::Range<u128> {
        let outside =
            cidr.v4 != self.range.v4 || cidr.last() < self.range.base || cidr.base > self.range.last();
        if outside {
            return 0..0;
        }
        let index = |a: u128| (a.clamp(self.range.base, self.range.last()) - self.range.base) >> self.shift();
        index(cidr.base)..index(cidr.last()) + 1
    }

    /// Marks what a range touches as taken.
    pub fn occupy(&mut self, cidr: &Cidr) {
        self.taken.extend(self.touched(cidr));
    }

    /// Marks what a range touches as free.
    pub fn release(&mut self, cidr: &Cidr) {
        for i in self.touched(cidr) {
            self.taken.remove(&i);
        }
    }

    /// Takes the next free block; `None` where all are taken. Blocks go round, so that one that was just given back is
    /// not given away at once.
    pub fn take(&mut self) -> Option<Cidr> {
        let count = self.count();
        let index = (0..count).map(|i| (self.next + i) % count).find(|i| !self.taken.contains(i))?;
        self.taken.insert(index);
        self.next = (index + 1) % count;
        Some(Cidr { base: self.range.base + (index << self.shift()), prefix: self.block, v4: self.range.v4 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cidr(s: &str) -> Cidr {
        Cidr::parse(s).unwrap()
    }

    #[test]
    fn blocks_are_given_once() {
        let mut b = Blocks::new(cidr("10.244.0.0/22"), 24).unwrap();
        b.occupy(&cidr("10.244.1.0/24"));
        let got: Vec<String> = std::iter::from_fn(|| b.take()).map(|c| c.to_string()).collect();
        assert_eq!(got, ["10.244.0.0/24", "10.244.2.0/24", "10.244.3.0/24"]);
        b.release(&cidr("10.244.2.0/24"));
        assert_eq!(b.take().unwrap().to_string(), "10.244.2.0/24");
        assert_eq!(b.take(), None);
    }

    #[test]
    fn a_service_range_inside_is_left_out() {
        let mut b = Blocks::new(cidr("10.0.0.0/8"), 24).unwrap();
        b.occupy(&cidr("10.0.0.0/16"));
        assert_eq!(b.take().unwrap().to_string(), "10.1.0.0/24");
        b.occupy(&cidr("192.168.0.0/16"));
        assert_eq!(b.take().unwrap().to_string(), "10.1.1.0/24");
    }

    #[test]
    fn version_six_and_nonsense() {
        let mut b = Blocks::new(cidr("fd00:10:244::/56"), 64).unwrap();
        assert_eq!(b.take().unwrap().to_string(), "fd00:10:244::/64");
        assert_eq!(b.take().unwrap().to_string(), "fd00:10:244:1::/64");
        assert!(Blocks::new(cidr("10.0.0.0/24"), 16).is_err());
        assert_eq!(Cidr::parse("10.0.0.0/33"), None);
        assert_eq!(Cidr::parse("x/8"), None);
    }
}
