//! What a service is given: cluster addresses and node ports.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use pilothouse_api::kinds::service::allocation as rules;
use pilothouse_apimachinery::status::Status;
use pilothouse_apimachinery::version::Release;
use pilothouse_store::Store;

use super::range::{Bitmap, Range};

/// Larger ranges are used up to this many addresses, as in Kubernetes.
const MAX_ADDRESSES: u128 = 1 << 16;

/// Why a wanted address or port is not to be had. Texts are v1.20's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Outside the range.
    #[error("provided {what} is not in the valid range. The range of valid {what}s is {range}")]
    NotInRange {
        /// `IP`, `port`.
        what: &'static str,
        /// The range.
        range: String,
    },
    /// Somebody has it.
    #[error("provided {0} is already allocated")]
    Taken(&'static str),
    /// Nothing is left.
    #[error("range is full")]
    Full,
    /// The store failed.
    #[error("{0}")]
    Store(Box<Status>),
}

impl From<Status> for Refused {
    fn from(status: Status) -> Refused {
        Refused::Store(Box::new(status))
    }
}

/// Allocates numbers of a range.
struct Numbers {
    range: Range,
    size: usize,
}

impl Numbers {
    async fn take(&self, n: usize, what: &'static str) -> Result<(), Refused> {
        let taken = self.range.change(|b| (!b.has(n)).then(|| b.set(n, true)));
        taken.await?.ok_or(Refused::Taken(what))
    }

    /// Takes any number from `first` on; those before only when all others are gone.
    async fn take_any(&self, first: usize) -> Result<usize, Refused> {
        let start = if first < self.size { rand::random_range(first..self.size) } else { 0 };
        let found = self.range.change(|b| {
            let high = (start..self.size).chain(first..start).find(|n| !b.has(*n));
            let n = high.or_else(|| b.free(0, self.size))?;
            b.set(n, true);
            Some(n)
        });
        found.await?.ok_or(Refused::Full)
    }

    /// A number that could be taken now.
    async fn peek(&self, first: usize) -> Result<usize, Refused> {
        let mut found = None;
        self.range
            .change(|b| {
                found = (first..self.size).find(|n| !b.has(*n)).or_else(|| b.free(0, self.size));
                None::<()>
            })
            .await?;
        found.ok_or(Refused::Full)
    }

    /// Whether a number could be taken now.
    async fn check(&self, n: usize, what: &'static str) -> Result<(), Refused> {
        let mut taken = false;
        self.range
            .change(|b| {
                taken = b.has(n);
                None::<()>
            })
            .await?;
        if taken { Err(Refused::Taken(what)) } else { Ok(()) }
    }

    async fn free(&self, n: usize) -> Result<(), Status> {
        self.range.change(|b| b.has(n).then(|| b.set(n, false))).await.map(drop)
    }

    async fn repair(&self, used: &Bitmap, leaked: &mut Vec<(usize, u8)>) -> Result<(), Status> {
        self.range
            .change(|b| {
                let kept = still_leaked(b, used, leaked);
                let mut next = used.clone();
                for (n, _) in &kept {
                    next.set(*n, true);
                }
                *b = next;
                Some(kept)
            })
            .await
            .map(|kept| *leaked = kept.unwrap_or_default())
    }
}

/// Numbers that are taken but used by nobody. They may belong to services that are just being created, so they are
/// freed only when they are found a third time.
fn still_leaked(stored: &Bitmap, used: &Bitmap, before: &[(usize, u8)]) -> Vec<(usize, u8)> {
    stored
        .iter()
        .filter(|n| !used.has(*n))
        .map(|n| (n, before.iter().find(|(m, _)| *m == n).map_or(1, |(_, seen)| seen + 1)))
        .filter(|(_, seen)| *seen < 3)
        .collect()
}

/// Allocates cluster addresses.
pub struct Addresses {
    net: IpNet,
    numbers: Numbers,
}

fn to_number(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => u32::from(ip).into(),
        IpAddr::V6(ip) => ip.into(),
    }
}

impl Addresses {
    /// Addresses of a range. `name` is the key's: `serviceips` for the first range, `secondaryserviceips` for another.
    pub fn new(net: IpNet, store: Arc<dyn Store>, prefix: &str, name: &str, release: Release) -> Addresses {
        let bits = u32::from(net.max_prefix_len() - net.prefix_len());
        let whole = 1u128.checked_shl(bits).unwrap_or(u128::MAX).min(MAX_ADDRESSES);
        // The network's own address is not used; of IPv4, neither is the broadcast address.
        let size = usize::try_from(whole.saturating_sub(2)).unwrap_or(0);
        let range = Range::new(store, prefix, name, net.to_string(), release);
        Addresses { net, numbers: Numbers { range, size } }
    }

    /// The range.
    pub fn net(&self) -> IpNet {
        self.net
    }

    fn base(&self) -> u128 {
        to_number(self.net.network()) + 1
    }

    fn number(&self, ip: IpAddr) -> Option<usize> {
        if ip.is_ipv4() != self.net.addr().is_ipv4() {
            return None;
        }
        let n = usize::try_from(to_number(ip).checked_sub(self.base())?).ok()?;
        (n < self.numbers.size).then_some(n)
    }

    fn address(&self, n: usize) -> IpAddr {
        let number = self.base() + n as u128;
        match self.net {
            // The range lies within 32 bits.
            IpNet::V4(_) => IpAddr::V4(u32::try_from(number).unwrap_or(u32::MAX).into()),
            IpNet::V6(_) => IpAddr::V6(number.into()),
        }
    }

    /// The first address: that of the service `kubernetes`.
    pub fn first(&self) -> IpAddr {
        self.address(0)
    }

    fn number_or_refuse(&self, ip: IpAddr) -> Result<usize, Refused> {
        self.number(ip).ok_or_else(|| Refused::NotInRange { what: "IP", range: self.net.to_string() })
    }

    /// Takes an address.
    pub async fn take(&self, ip: IpAddr) -> Result<(), Refused> {
        self.numbers.take(self.number_or_refuse(ip)?, "IP").await
    }

    /// Whether an address could be taken now: for dry runs.
    pub async fn check(&self, ip: IpAddr) -> Result<(), Refused> {
        self.numbers.check(self.number_or_refuse(ip)?, "IP").await
    }

    /// An address that could be taken now: for dry runs.
    pub async fn peek(&self) -> Result<IpAddr, Refused> {
        Ok(self.address(self.numbers.peek(1).await?))
    }

    /// Takes a free address. The first is left for `kubernetes`.
    pub async fn take_any(&self) -> Result<IpAddr, Refused> {
        Ok(self.address(self.numbers.take_any(1).await?))
    }

    /// Frees an address.
    pub async fn free(&self, ip: IpAddr) -> Result<(), Status> {
        match self.number(ip) {
            Some(n) => self.numbers.free(n).await,
            None => Ok(()),
        }
    }

    /// Makes the stored state that of the addresses in use.
    pub async fn repair(&self, used: &[IpAddr], leaked: &mut Vec<(usize, u8)>) -> Result<(), Status> {
        let mut bitmap = Bitmap::default();
        used.iter().filter_map(|ip| self.number(*ip)).for_each(|n| bitmap.set(n, true));
        self.numbers.repair(&bitmap, leaked).await
    }
}

/// Allocates node ports.
pub struct Ports {
    first: u16,
    last: u16,
    numbers: Numbers,
}

impl Ports {
    /// Ports from `first` to `last`.
    pub fn new(first: u16, last: u16, store: Arc<dyn Store>, prefix: &str, release: Release) -> Ports {
        let range = Range::new(store, prefix, "servicenodeports", format!("{first}-{last}"), release);
        Ports { first, last, numbers: Numbers { range, size: usize::from(last - first) + 1 } }
    }

    fn number(&self, port: u16) -> Option<usize> {
        (self.first..=self.last).contains(&port).then(|| usize::from(port - self.first))
    }

    /// Takes ports for one service, all in one change of the store; with an error, none. A dry run takes none.
    pub async fn change<T: Send, E: Send>(
        &self,
        dry_run: bool,
        mut assign: impl FnMut(&mut Pool<'_>) -> Result<T, E> + Send,
    ) -> Result<Result<T, E>, Status> {
        let mut outcome = None;
        let changed = self.numbers.range.change(|bitmap| {
            let mut next = bitmap.clone();
            let result = assign(&mut Pool { ports: self, bitmap: &mut next, dry_run });
            if result.is_ok() && !dry_run {
                *bitmap = next;
            }
            let write = result.is_ok() && !dry_run;
            outcome = Some(result);
            write.then_some(())
        });
        changed.await?;
        outcome.ok_or_else(|| Status::internal("allocation failed"))
    }

    /// Frees ports.
    pub async fn free(&self, ports: &[u16]) -> Result<(), Status> {
        let numbers: Vec<usize> = ports.iter().filter_map(|p| self.number(*p)).collect();
        if numbers.is_empty() {
            return Ok(());
        }
        let free = |b: &mut Bitmap| {
            numbers.iter().any(|n| b.has(*n)).then(|| numbers.iter().for_each(|n| b.set(*n, false)))
        };
        self.numbers.range.change(free).await.map(drop)
    }

    /// Makes the stored state that of the ports in use.
    pub async fn repair(&self, used: &[u16], leaked: &mut Vec<(usize, u8)>) -> Result<(), Status> {
        let mut bitmap = Bitmap::default();
        used.iter().filter_map(|p| self.number(*p)).for_each(|n| bitmap.set(n, true));
        self.numbers.repair(&bitmap, leaked).await
    }
}

/// The node ports as one change sees them.
pub struct Pool<'a> {
    ports: &'a Ports,
    bitmap: &'a mut Bitmap,
    dry_run: bool,
}

impl rules::Ports for Pool<'_> {
    fn allocate(&mut self, port: i64) -> Result<(), String> {
        let p = self.ports;
        let Some(n) = u16::try_from(port).ok().and_then(|port| p.number(port)) else {
            // A dry run only looks whether somebody has it.
            if self.dry_run {
                return Ok(());
            }
            let range = format!("{}-{}", p.first, p.last);
            return Err(Refused::NotInRange { what: "port", range }.to_string());
        };
        if self.bitmap.has(n) {
            return Err(Refused::Taken("port").to_string());
        }
        self.bitmap.set(n, true);
        Ok(())
    }

    fn allocate_next(&mut self) -> Result<i64, String> {
        let size = self.ports.numbers.size;
        let n =
            self.bitmap.free(rand::random_range(0..size), size).ok_or_else(|| Refused::Full.to_string())?;
        self.bitmap.set(n, true);
        Ok(i64::from(self.ports.first) + i64::try_from(n).unwrap_or(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::test_store::MemoryStore;
    use std::collections::BTreeSet;

    fn addresses(store: &Arc<MemoryStore>, net: &str) -> Addresses {
        Addresses::new(net.parse().unwrap(), store.clone(), "/registry", "serviceips", Release::V1_20)
    }

    #[tokio::test]
    async fn says_why_not() {
        let store = Arc::new(MemoryStore::default());
        let a = addresses(&store, "10.0.0.0/29");
        assert_eq!(a.first().to_string(), "10.0.0.1");
        a.take("10.0.0.2".parse().unwrap()).await.unwrap();
        assert_eq!(
            a.take("10.0.0.2".parse().unwrap()).await.unwrap_err().to_string(),
            "provided IP is already allocated"
        );
        for out in ["10.0.0.0", "10.0.0.7", "1.2.3.4", "::1"] {
            assert_eq!(
                a.take(out.parse().unwrap()).await.unwrap_err().to_string(),
                "provided IP is not in the valid range. The range of valid IPs is 10.0.0.0/29"
            );
        }
        for _ in 0..5 {
            a.take_any().await.unwrap();
        }
        assert_eq!(a.take_any().await.unwrap_err(), Refused::Full);
        a.free("10.0.0.2".parse().unwrap()).await.unwrap();
        assert_eq!(a.take_any().await.unwrap().to_string(), "10.0.0.2");
        let p = Ports::new(30000, 30001, store, "/registry", Release::V1_20);
        let take = |port: i64| {
            let p = &p;
            async move { p.change(false, |pool| rules::Ports::allocate(pool, port)).await.unwrap() }
        };
        assert_eq!(
            take(80).await.unwrap_err(),
            "provided port is not in the valid range. The range of valid ports is 30000-30001"
        );
        take(30000).await.unwrap();
        assert_eq!(take(30000).await.unwrap_err(), "provided port is already allocated");
        p.free(&[30000]).await.unwrap();
        take(30000).await.unwrap();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn two_servers_never_give_the_same_twice() {
        let store = Arc::new(MemoryStore::default());
        let servers =
            [Arc::new(addresses(&store, "10.0.0.0/24")), Arc::new(addresses(&store, "10.0.0.0/24"))];
        let tasks: Vec<_> = (0..120)
            .map(|i| {
                let server = servers[i % 2].clone();
                tokio::spawn(async move { server.take_any().await.unwrap() })
            })
            .collect();
        let mut seen = BTreeSet::new();
        for t in tasks {
            assert!(seen.insert(t.await.unwrap()));
        }
        assert!(!seen.contains(&servers[0].first()));
    }

    #[tokio::test]
    async fn repair_takes_what_is_used_and_frees_what_is_not() {
        let store = Arc::new(MemoryStore::default());
        let a = addresses(&store, "10.0.0.0/24");
        let (used, lost) = ("10.0.0.5".parse().unwrap(), "10.0.0.6".parse().unwrap());
        a.take(lost).await.unwrap();
        let mut leaked = Vec::new();
        for _ in 0..2 {
            a.repair(&[used], &mut leaked).await.unwrap();
            assert!(a.take(lost).await.is_err());
        }
        assert!(a.take(used).await.is_err());
        a.repair(&[used], &mut leaked).await.unwrap();
        a.take(lost).await.unwrap();
    }
}
