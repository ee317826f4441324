//! Health check node ports: a load balancer in front of a service that keeps to each node's own backends asks every node
//! whether it has any.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use bytes::Bytes;
use http::{Response, StatusCode, header};
use http_body_util::Full;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use k8s_openapi::api::core::v1::Service;
use parking_lot::Mutex;
use pilothouse_component_base::signals::{Stop, Stopper};
use tokio::net::TcpListener;

use crate::family::Family;
use crate::model::ServiceEntry;

/// What one port answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthCheck {
    /// The service's namespace.
    pub namespace: String,
    /// The service's name.
    pub name: String,
    /// How many addresses behind it are on this node.
    pub local: usize,
}

impl HealthCheck {
    /// Code and body.
    pub fn answer(&self) -> (StatusCode, String) {
        let HealthCheck { namespace, name, local } = self;
        let code = if *local == 0 { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
        let body = format!(
            "{{\n\t\"service\": {{\n\t\t\"namespace\": {namespace:?},\n\t\t\"name\": {name:?}\n\t}},\n\t\"localEndpoints\": {local}\n}}"
        );
        (code, body)
    }
}

/// The ports to serve, by number.
pub fn wanted(services: &[Arc<Service>], model: &[ServiceEntry]) -> BTreeMap<u16, HealthCheck> {
    let mut checks = BTreeMap::new();
    for service in services {
        let Some(spec) = &service.spec else { continue };
        let port = spec.health_check_node_port.and_then(|p| u16::try_from(p).ok()).unwrap_or(0);
        if port == 0 || spec.external_traffic_policy.as_deref() != Some("Local") {
            continue;
        }
        let namespace = service.metadata.namespace.clone().unwrap_or_default();
        let name = service.metadata.name.clone().unwrap_or_default();
        let prefix = format!("{namespace}/{name}:");
        // A pod with an address of each family is one.
        let Some(first) = spec.cluster_ip.as_deref().and_then(|ip| ip.parse().ok()).map(Family::of) else {
            continue;
        };
        let entries = model.iter().filter(|e| e.family() == first && e.id.starts_with(&prefix));
        let local: BTreeSet<IpAddr> =
            entries.flat_map(|e| &e.backends).filter(|b| b.local).map(|b| b.ip).collect();
        checks.insert(port, HealthCheck { namespace, name, local: local.len() });
    }
    checks
}

struct Server {
    check: Arc<Mutex<HealthCheck>>,
    stopper: Stopper,
}

/// The ports that are served now.
#[derive(Default)]
pub struct Servers(HashMap<u16, Server>);

impl Servers {
    /// Serves these ports and no others. A port that cannot be opened is tried again the next time.
    pub async fn sync(&mut self, wanted: BTreeMap<u16, HealthCheck>) {
        self.0.retain(|port, server| {
            let stays = wanted.contains_key(port);
            if !stays {
                server.stopper.stop();
            }
            stays
        });
        for (port, check) in wanted {
            if let Some(server) = self.0.get(&port) {
                *server.check.lock() = check;
                continue;
            }
            // One socket for both families, where the machine has both.
            let bound = match TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).await {
                Err(_) => TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await,
                bound => bound,
            };
            let listener = match bound {
                Ok(l) => l,
                Err(e) => {
                    let HealthCheck { namespace, name, .. } = &check;
                    tracing::error!(
                        "node {namespace}/{name} failed to start healthcheck on port {port}: {e}"
                    );
                    continue;
                }
            };
            let (stopper, stop) = Stop::new();
            let check = Arc::new(Mutex::new(check));
            tokio::spawn(serve(listener, check.clone(), stop));
            self.0.insert(port, Server { check, stopper });
        }
    }
}

async fn serve(listener: TcpListener, check: Arc<Mutex<HealthCheck>>, stop: Stop) {
    loop {
        let accepted = tokio::select! { _ = stop.wait() => return, a = listener.accept() => a };
        let Ok((stream, _)) = accepted else { continue };
        let check = check.clone();
        tokio::spawn(async move {
            let service = service_fn(move |_| {
                let answer = response(&check.lock());
                async move { Ok::<_, Infallible>(answer) }
            });
            let mut builder = http1::Builder::new();
            builder.timer(TokioTimer::new());
            if let Err(e) = builder.serve_connection(TokioIo::new(stream), service).await {
                tracing::debug!("health check connection: {e}");
            }
        });
    }
}

fn response(check: &HealthCheck) -> Response<Full<Bytes>> {
    let (code, body) = check.answer();
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = code;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, header::HeaderValue::from_static("nosniff"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Backend;
    use serde_json::json;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    fn entry(id: &str, backends: &[(u8, bool)]) -> ServiceEntry {
        ServiceEntry {
            id: id.into(),
            protocol: "tcp".into(),
            cluster_ip: [10, 0, 0, 1].into(),
            port: 80,
            node_port: 0,
            external_ips: BTreeSet::new(),
            ingress_ips: BTreeSet::new(),
            source_ranges: Vec::new(),
            affinity_seconds: 0,
            external_local: true,
            internal_local: false,
            backends: backends
                .iter()
                .map(|(n, local)| Backend { ip: [10, 1, 0, *n].into(), port: 80, local: *local })
                .collect(),
        }
    }

    #[test]
    fn addresses_of_this_node_are_counted_once() {
        let service: Service = serde_json::from_value(json!({"metadata": {"name": "s", "namespace": "n"},
            "spec": {"type": "LoadBalancer", "clusterIP": "10.0.0.1", "externalTrafficPolicy": "Local", "healthCheckNodePort": 31000}}))
        .unwrap();
        let model = [
            entry("n/s:a", &[(1, true), (2, true), (3, false)]),
            entry("n/s:b", &[(1, true)]),
            entry("n/s2:a", &[(4, true)]),
        ];
        let checks = wanted(&[Arc::new(service.clone())], &model);
        assert_eq!(checks[&31000].local, 2);
        assert_eq!(
            checks[&31000].answer(),
            (
                StatusCode::OK,
                "{\n\t\"service\": {\n\t\t\"namespace\": \"n\",\n\t\t\"name\": \"s\"\n\t},\n\t\"localEndpoints\": 2\n}".into()
            )
        );
        let mut cluster = service;
        cluster.spec.as_mut().unwrap().external_traffic_policy = Some("Cluster".into());
        assert!(wanted(&[Arc::new(cluster)], &model).is_empty());
    }

    #[tokio::test]
    async fn ports_come_and_go_with_their_services() {
        let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
        let check =
            |local| BTreeMap::from([(free, HealthCheck { namespace: "n".into(), name: "s".into(), local })]);
        let ask = async || {
            let mut stream = TcpStream::connect(("127.0.0.1", free)).await.unwrap();
            stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
            let mut text = String::new();
            stream.read_to_string(&mut text).await.unwrap();
            text.split(' ').nth(1).unwrap().to_string()
        };
        let mut servers = Servers::default();
        servers.sync(check(1)).await;
        assert_eq!(ask().await, "200");
        servers.sync(check(0)).await;
        assert_eq!(ask().await, "503");
        servers.sync(BTreeMap::new()).await;
        assert!(servers.0.is_empty());
    }
}
