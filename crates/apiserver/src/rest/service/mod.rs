//! Services are given addresses and ports when they are stored, and give them back when they go.

pub mod allocator;
pub mod range;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use pilothouse_api::kinds::service::allocation::{self as rules, Refusal};
use pilothouse_apimachinery::field::{self, ErrorList, Path};
use pilothouse_apimachinery::json::{Value, json};
use pilothouse_apimachinery::status::Status;
use pilothouse_apimachinery::version::Release;
use pilothouse_component_base::signals::Stop;
use pilothouse_store::Store;

use self::allocator::{Addresses, Pool, Ports, Refused};
use crate::config::Config;
use crate::json::{self, str_at, texts};
use crate::request::{Objects, Settle, StorageHook, Write};

/// How often the allocators' state is compared with the services.
const REPAIR: Duration = Duration::from_secs(180);

/// All that services are given. The state is in the store, so there may be many of these, on many servers.
#[derive(Clone)]
pub struct Allocators {
    addresses: Arc<Vec<Addresses>>,
    ports: Arc<Ports>,
    release: Release,
}

/// What a service holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Held {
    addresses: Vec<IpAddr>,
    ports: Vec<u16>,
}

impl Held {
    fn parse(addresses: &[String], ports: impl IntoIterator<Item = i64>) -> Held {
        Held {
            addresses: addresses.iter().filter_map(|ip| ip.parse().ok()).collect(),
            ports: ports.into_iter().filter_map(|p| u16::try_from(p).ok()).collect(),
        }
    }

    /// What a service holds that another state of it (`None`: nothing) does not.
    fn lost(service: &Value, other: Option<&Value>) -> Held {
        Held::parse(&rules::released_ips(service, other), rules::released_ports(service, other))
    }

    fn is_empty(&self) -> bool {
        self.addresses.is_empty() && self.ports.is_empty()
    }
}

fn invalid(service: &Value, errors: &ErrorList) -> Status {
    Status::invalid("", "Service", str_at(service, &["metadata", "name"]), errors)
}

impl Allocators {
    /// The allocators of a server with this configuration.
    pub fn new(config: &Config, store: &Arc<dyn Store>) -> Allocators {
        let (prefix, release) = (&config.etcd_prefix, config.release);
        let ranges = config.service_cluster_ip_ranges.iter().enumerate();
        let addresses = ranges.map(|(i, net)| {
            let name = if i == 0 { "serviceips" } else { "secondaryserviceips" };
            Addresses::new(*net, store.clone(), prefix, name, release)
        });
        let (first, last) = config.service_node_ports;
        Allocators {
            addresses: Arc::new(addresses.collect()),
            ports: Arc::new(Ports::new(first, last, store.clone(), prefix, release)),
            release,
        }
    }

    /// The address of the service `kubernetes`.
    pub fn first_address(&self) -> Option<IpAddr> {
        self.addresses.first().map(Addresses::first)
    }

    fn newest(&self) -> bool {
        self.release > Release::V1_20
    }

    /// The families of the ranges, the default one first.
    fn families(&self) -> Vec<&'static str> {
        self.addresses.iter().map(|a| if a.net().addr().is_ipv4() { "IPv4" } else { "IPv6" }).collect()
    }

    fn refused(&self, service: &Value, ip: &str, e: &Refused) -> Status {
        let path = Path::new("spec").child("clusterIPs");
        let error = if self.newest() {
            field::invalid_shown(&path, &format!("[{ip:?}]"), &format!("failed to allocate IP {ip}: {e}"))
        } else {
            let why = format!("failed to allocated ip:{ip} with error:{e}");
            field::invalid_shown(&path, &format!("[]string{{{ip:?}}}"), &why)
        };
        invalid(service, &vec![error])
    }

    /// Takes one address: the one wanted, or any of a family where none is.
    async fn address(
        &self,
        service: &Value,
        wanted: &str,
        family: &str,
        dry_run: bool,
    ) -> Result<IpAddr, Status> {
        let Some(primary) = self.addresses.first() else {
            return Err(Status::internal("no service cluster IP range"));
        };
        if wanted.is_empty() {
            let mut ranges = self.addresses.iter();
            let range = ranges.find(|a| a.net().addr().is_ipv4() == (family != "IPv6")).unwrap_or(primary);
            let ip = if dry_run { range.peek().await } else { range.take_any().await };
            return ip.map_err(|e| Status::internal(format!("failed to allocate a serviceIP: {e}")));
        }
        let outside = || Refused::NotInRange { what: "IP", range: primary.net().to_string() };
        let ip = wanted.parse::<IpAddr>().map_err(|_| self.refused(service, wanted, &outside()))?;
        let range = self.addresses.iter().find(|a| a.net().contains(&ip)).unwrap_or(primary);
        match if dry_run { range.check(ip).await } else { range.take(ip).await } {
            Ok(()) => Ok(ip),
            Err(Refused::Store(e)) => Err(*e),
            Err(e) => Err(self.refused(service, wanted, &e)),
        }
    }

    /// Gives a service its addresses. What was taken is in the service afterwards, also after an error.
    async fn assign_addresses(&self, service: &mut Value, write: Write<'_>) -> Result<(), Status> {
        let had = write.old.is_some_and(|o| !Held::lost(o, None).addresses.is_empty());
        if !rules::takes_from_pool(service) || had {
            return Ok(());
        }
        // v1.20 neither gives nor checks addresses where nothing will be stored.
        if write.dry_run && !self.newest() {
            return Ok(());
        }
        let mut families = texts(service, &["spec", "ipFamilies"]);
        if families.is_empty() {
            families.extend(self.families().first().map(ToString::to_string));
        }
        let mut wanted = texts(service, &["spec", "clusterIPs"]);
        if wanted.is_empty() {
            wanted.push(str_at(service, &["spec", "clusterIP"]).to_string());
        }
        wanted.resize(wanted.len().max(families.len()), String::new());
        let mut given: Vec<String> = Vec::new();
        let mut result = Ok(());
        for (i, w) in wanted.iter().enumerate() {
            match self.address(service, w, families.get(i).map_or("", String::as_str), write.dry_run).await {
                Ok(ip) => given.push(ip.to_string()),
                Err(e) => {
                    result = Err(e);
                    break;
                }
            }
        }
        if let Some(first) = given.first() {
            json::set(service, &["spec", "clusterIP"], first.clone());
        }
        json::set(service, &["spec", "clusterIPs"], given);
        result
    }

    /// Gives a service its ports, all in one change of the store.
    async fn assign_ports(&self, service: &mut Value, write: Write<'_>) -> Result<(), Status> {
        let health = |s: &Value| rules::needs_health_check_port(s);
        if !rules::needs_node_port(service) && !health(service) && !write.old.is_some_and(health) {
            return Ok(());
        }
        let before = service.clone();
        let assign = |pool: &mut Pool<'_>| -> Result<Value, Refusal> {
            let mut next = before.clone();
            match write.old {
                None => rules::assign_node_ports(&mut next, pool)?,
                Some(old) => rules::reassign_node_ports(&mut next, old, pool)?,
            }
            rules::assign_health_check_port(&mut next, write.old, pool)?;
            Ok(next)
        };
        *service = self.ports.change(write.dry_run, assign).await?.map_err(|e| match e {
            Refusal::Invalid(errors) => invalid(&before, &errors),
            Refusal::Internal(why) => Status::internal(why),
        })?;
        Ok(())
    }

    async fn free(&self, held: Held) {
        for ip in held.addresses {
            // What cannot be freed now is found by the repair.
            if let Some(range) = self.addresses.iter().find(|a| a.net().contains(&ip))
                && let Err(e) = range.free(ip).await
            {
                tracing::warn!("cannot free service address {ip}: {e}");
            }
        }
        if let Err(e) = self.ports.free(&held.ports).await {
            tracing::warn!("cannot free node ports {:?}: {e}", held.ports);
        }
    }

    /// Makes the stored state that of the services, now and every few minutes, until `stop`.
    pub async fn keep_repaired(self, objects: Arc<dyn Objects>, stop: Stop) {
        let mut leaked: Vec<Vec<(usize, u8)>> = vec![Vec::new(); self.addresses.len()];
        let mut leaked_ports = Vec::new();
        loop {
            if let Err(e) = self.repair(&*objects, &mut leaked, &mut leaked_ports).await {
                tracing::warn!("service allocations cannot be repaired: {e}");
            }
            tokio::select! { () = stop.wait() => return, () = tokio::time::sleep(REPAIR) => {} }
        }
    }

    async fn repair(
        &self,
        objects: &dyn Objects,
        leaked: &mut [Vec<(usize, u8)>],
        leaked_ports: &mut Vec<(usize, u8)>,
    ) -> Result<(), Status> {
        let mut used = Held::default();
        for service in objects.list("", "services", "") {
            let held = Held::lost(&service, None);
            used.addresses.extend(held.addresses);
            used.ports.extend(held.ports);
        }
        for (range, leaked) in self.addresses.iter().zip(leaked) {
            range.repair(&used.addresses, leaked).await?;
        }
        self.ports.repair(&used.ports, leaked_ports).await
    }
}

#[async_trait]
impl StorageHook for Allocators {
    async fn before_write(&self, write: Write<'_>, object: &mut Value) -> Result<Option<Settle>, Status> {
        if !write.subresource.is_empty() {
            return Ok(None);
        }
        if self.newest() {
            rules::default_families(object, write.old, &self.families()).map_err(|e| invalid(object, &e))?;
        }
        let mut result = self.assign_addresses(object, write).await;
        if result.is_ok() {
            result = self.assign_ports(object, write).await;
        }
        if write.dry_run {
            return result.map(|()| None);
        }
        let mut taken = Held::lost(object, write.old);
        if let Err(e) = result {
            // Addresses are taken one by one; ports all or none.
            taken.ports.clear();
            self.free(taken).await;
            return Err(e);
        }
        if !rules::takes_from_pool(object) && str_at(object, &["spec", "clusterIP"]) == "None" {
            json::set_default(object, &["spec", "clusterIPs"], json!(["None"]));
        }
        let given_up = write.old.map(|old| Held::lost(old, Some(object))).unwrap_or_default();
        if taken.is_empty() && given_up.is_empty() {
            return Ok(None);
        }
        let this = self.clone();
        Ok(Some(Box::new(move |stored| {
            let free = if stored { given_up } else { taken };
            if !free.is_empty() {
                tokio::spawn(async move { this.free(free).await });
            }
        })))
    }

    async fn after_delete(&self, object: &Value) {
        self.free(Held::lost(object, None)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::test_store::MemoryStore;

    fn allocators() -> Allocators {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::default());
        let net = "10.0.0.0/24".parse().unwrap();
        let release = Release::V1_20;
        Allocators {
            addresses: Arc::new(vec![Addresses::new(net, store.clone(), "/registry", "serviceips", release)]),
            ports: Arc::new(Ports::new(30000, 30010, store, "/registry", release)),
            release,
        }
    }

    async fn take_port(a: &Allocators, port: i64) -> Result<(), String> {
        a.ports.change(false, |pool| rules::Ports::allocate(pool, port)).await.unwrap()
    }

    fn service(spec: Value) -> Value {
        json!({"metadata": {"name": "s", "namespace": "n"}, "spec": spec})
    }

    fn write(old: Option<&Value>) -> Write<'_> {
        Write { old, subresource: "", namespace: "n", dry_run: false }
    }

    #[tokio::test]
    async fn gives_and_takes_back() {
        let a = allocators();
        let mut s = service(json!({"type": "NodePort", "ports": [
            {"port": 80, "nodePort": 30005}, {"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}]}));
        a.before_write(write(None), &mut s).await.unwrap().unwrap()(true);
        let ports: Vec<_> =
            s["spec"]["ports"].as_array().unwrap().iter().map(|p| p["nodePort"].as_i64().unwrap()).collect();
        assert_eq!(ports[0], 30005);
        assert_eq!(ports[1], ports[2]);
        assert_eq!(s["spec"]["clusterIPs"][0], s["spec"]["clusterIP"]);
        let mut again = service(json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 30005}]}));
        let e = a.before_write(write(None), &mut again).await.err().unwrap();
        assert_eq!(
            e.message,
            "Service \"s\" is invalid: spec.ports[0].nodePort: Invalid value: 30005: provided port is already allocated"
        );
        a.after_delete(&s).await;
        a.before_write(write(None), &mut again).await.unwrap();
    }

    #[tokio::test]
    async fn says_which_address_is_not_to_be_had() {
        let a = allocators();
        let mut s = service(json!({"type": "ClusterIP", "clusterIP": "1.2.3.4"}));
        let e = a.before_write(write(None), &mut s).await.err().unwrap();
        assert_eq!(
            e.message,
            "Service \"s\" is invalid: spec.clusterIPs: Invalid value: []string{\"1.2.3.4\"}: failed to allocated ip:1.2.3.4 with \
             error:provided IP is not in the valid range. The range of valid IPs is 10.0.0.0/24"
        );
        let mut headless = service(json!({"type": "ClusterIP", "clusterIP": "None"}));
        assert!(a.before_write(write(None), &mut headless).await.unwrap().is_none());
        assert_eq!(headless["spec"]["clusterIPs"], json!(["None"]));
    }

    #[tokio::test]
    async fn a_dry_run_of_v1_20_does_not_look_at_addresses() {
        let a = allocators();
        let mut s = service(json!({"type": "ClusterIP", "clusterIP": "1.2.3.4", "clusterIPs": ["1.2.3.4"]}));
        let dry_run = Write { dry_run: true, ..write(None) };
        assert!(a.before_write(dry_run, &mut s).await.unwrap().is_none());
        assert_eq!(s["spec"]["clusterIP"], "1.2.3.4");
    }

    #[tokio::test]
    async fn a_failed_write_gives_back() {
        let a = allocators();
        let mut s = service(json!({"type": "ClusterIP", "clusterIP": "10.0.0.9"}));
        let settle = a.before_write(write(None), &mut s).await.unwrap().unwrap();
        let mut other = service(json!({"type": "ClusterIP", "clusterIP": "10.0.0.9"}));
        assert!(a.before_write(write(None), &mut other).await.is_err());
        settle(false);
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        a.before_write(write(None), &mut other).await.unwrap();
    }

    #[tokio::test]
    async fn a_change_of_type_gives_up_ports() {
        let a = allocators();
        let mut old = service(json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 30001}]}));
        a.before_write(write(None), &mut old).await.unwrap();
        let mut new = old.clone();
        new["spec"]["type"] = json!("ClusterIP");
        new["spec"]["ports"][0].as_object_mut().unwrap().remove("nodePort");
        a.before_write(write(Some(&old)), &mut new).await.unwrap().unwrap()(true);
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        assert_eq!(take_port(&a, 30001).await, Ok(()));
        assert!(
            a.addresses[0].take(new["spec"]["clusterIP"].as_str().unwrap().parse().unwrap()).await.is_err()
        );
    }

    #[tokio::test]
    async fn a_dry_run_takes_nothing() {
        let a = allocators();
        let dry = Write { dry_run: true, ..write(None) };
        let mut s = service(json!({"type": "NodePort", "ports": [{"port": 80}]}));
        a.before_write(dry, &mut s).await.unwrap();
        assert!(s["spec"]["ports"][0]["nodePort"].as_i64().unwrap() >= 30000);
        for port in 30000..=30010 {
            assert_eq!(take_port(&a, port).await, Ok(()));
        }
    }
}
