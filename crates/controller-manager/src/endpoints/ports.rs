//! From a service's ports to a pod's.

use k8s_openapi::api::core::v1::{Pod, Service, ServicePort};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

/// One port of a pod behind a service.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Port {
    /// The service port's name.
    pub name: String,
    /// Number at the pod.
    pub port: i32,
    /// `TCP`, `UDP`, `SCTP`.
    pub protocol: String,
    /// What is spoken there.
    pub app_protocol: Option<String>,
}

/// The pod's ports that a service leads to; a named port that the pod lacks is left out.
pub fn of_pod(service: &Service, pod: &Pod) -> Vec<Port> {
    let ports = service.spec.as_ref().and_then(|s| s.ports.as_deref()).unwrap_or_default();
    ports
        .iter()
        .filter_map(|p| {
            Some(Port {
                name: p.name.clone().unwrap_or_default(),
                port: target(p, pod)?,
                protocol: p.protocol.clone().unwrap_or_else(|| "TCP".into()),
                app_protocol: p.app_protocol.clone(),
            })
        })
        .collect()
}

fn target(port: &ServicePort, pod: &Pod) -> Option<i32> {
    match &port.target_port {
        None => Some(port.port),
        Some(IntOrString::Int(0)) => Some(port.port),
        Some(IntOrString::Int(n)) => Some(*n),
        Some(IntOrString::String(name)) => {
            let protocol = port.protocol.as_deref().unwrap_or("TCP");
            let containers = pod.spec.iter().flat_map(|s| &s.containers);
            containers
                .flat_map(|c| c.ports.iter().flatten())
                .find(|p| p.name.as_ref() == Some(name) && p.protocol.as_deref().unwrap_or("TCP") == protocol)
                .map(|p| p.container_port)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn named_ports_are_looked_up_with_their_protocol() {
        let service: Service =
            serde_json::from_value(json!({"apiVersion": "v1", "kind": "Service", "metadata": {},
            "spec": {"ports": [{"name": "a", "port": 80, "targetPort": "http"}, {"port": 90},
                {"port": 53, "protocol": "UDP", "targetPort": "http"}]}}))
            .unwrap();
        let pod: Pod = serde_json::from_value(json!({"apiVersion": "v1", "kind": "Pod", "metadata": {},
            "spec": {"containers": [{"name": "c", "ports": [{"name": "http", "containerPort": 8080}]}]}}))
        .unwrap();
        let ports: Vec<i32> = of_pod(&service, &pod).into_iter().map(|p| p.port).collect();
        assert_eq!(ports, [8080, 90]);
    }
}
