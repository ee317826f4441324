//! A container's environment: `envFrom`, `env`, and the variables that tell of services.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{ConfigMap, Container, Pod, Secret, Service};
use pilothouse_apimachinery::names::env_var_name;

use super::downward::{NodeFields, env_field, resource_field};
use super::expansion::expand;
use crate::objects::Objects;
use crate::pod::PodExt;
use crate::resources::Amounts;

/// The namespace whose `kubernetes` service every pod is told of.
const MASTER_NAMESPACE: &str = "default";
const MASTER_SERVICE: &str = "kubernetes";

/// The config maps and secrets that a container's variables refer to; `None` for those that do not exist.
#[derive(Debug, Default)]
pub struct Sources {
    config_maps: BTreeMap<String, Option<Arc<ConfigMap>>>,
    secrets: BTreeMap<String, Option<Arc<Secret>>>,
}

/// Fetches what a container's variables refer to.
pub async fn sources(pod: &Pod, container: &Container, objects: &dyn Objects) -> Result<Sources, String> {
    let (mut maps, mut secrets) = (BTreeSet::new(), BTreeSet::new());
    for from in container.env_from.iter().flatten() {
        maps.extend(from.config_map_ref.as_ref().map(|r| r.name.clone()));
        secrets.extend(from.secret_ref.as_ref().map(|r| r.name.clone()));
    }
    for source in container.env.iter().flatten().filter_map(|e| e.value_from.as_ref()) {
        maps.extend(source.config_map_key_ref.as_ref().map(|r| r.name.clone()));
        secrets.extend(source.secret_key_ref.as_ref().map(|r| r.name.clone()));
    }
    let mut sources = Sources::default();
    for name in maps {
        let object = objects.config_map(pod.namespace(), &name, std::time::Duration::ZERO).await?;
        sources.config_maps.insert(name, object);
    }
    for name in secrets {
        let object = objects.secret(pod.namespace(), &name, std::time::Duration::ZERO).await?;
        sources.secrets.insert(name, object);
    }
    Ok(sources)
}

/// What else goes into an environment.
pub struct Context<'a> {
    /// Variables of services; see [`service_variables`].
    pub services: BTreeMap<String, String>,
    /// Addresses.
    pub node: NodeFields<'a>,
    /// What the node can give, for limits that are not set.
    pub allocatable: &'a Amounts,
}

/// An environment, sorted by name, and warnings about keys that can be no variables.
#[derive(Debug, Default, PartialEq)]
pub struct Environment {
    /// The variables.
    pub variables: BTreeMap<String, String>,
    /// Messages for events with reason `InvalidEnvironmentVariableNames`.
    pub warnings: Vec<String>,
}

fn text(bytes: &k8s_openapi::ByteString) -> String {
    String::from_utf8_lossy(&bytes.0).into_owned()
}

/// Works out a container's environment. The error is what its status then says.
pub fn environment(
    pod: &Pod,
    container: &Container,
    sources: &Sources,
    context: &Context<'_>,
) -> Result<Environment, String> {
    let mut out = Environment::default();
    for from in container.env_from.iter().flatten() {
        let (pairs, what): (Vec<(String, String)>, _) = if let Some(r) = &from.config_map_ref {
            match sources.config_maps.get(&r.name).and_then(Option::as_ref) {
                Some(m) => (
                    m.data.iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect(),
                    ("configMap", &r.name),
                ),
                None if r.optional == Some(true) => continue,
                None => return Err(format!("configmap \"{}\" not found", r.name)),
            }
        } else if let Some(r) = &from.secret_ref {
            match sources.secrets.get(&r.name).and_then(Option::as_ref) {
                Some(s) => (
                    s.data.iter().flatten().map(|(k, v)| (k.clone(), text(v))).collect(),
                    ("secret", &r.name),
                ),
                None if r.optional == Some(true) => continue,
                None => return Err(format!("secret \"{}\" not found", r.name)),
            }
        } else {
            continue;
        };
        let prefix = from.prefix.as_deref().unwrap_or("");
        let mut invalid = Vec::new();
        for (k, v) in pairs {
            let name = format!("{prefix}{k}");
            if env_var_name(&name).is_empty() {
                out.variables.insert(name, v);
            } else {
                invalid.push(name);
            }
        }
        if !invalid.is_empty() {
            invalid.sort();
            out.warnings.push(format!(
                "Keys [{}] from the EnvFrom {} {}/{} were skipped since they are considered invalid environment variable names.",
                invalid.join(", "), what.0, pod.namespace(), what.1
            ));
        }
    }

    let mut services = context.services.clone();
    for e in container.env.iter().flatten() {
        let mut value = e.value.clone().unwrap_or_default();
        if !value.is_empty() {
            value = expand(&value, |name| out.variables.get(name).or_else(|| services.get(name)).cloned());
        } else if let Some(source) = &e.value_from {
            if let Some(field) = &source.field_ref {
                value = env_field(pod, &field.field_path, &context.node)?;
            } else if let Some(selector) = &source.resource_field_ref {
                let named = selector.container_name.as_deref().filter(|n| !n.is_empty());
                let of = match named {
                    Some(n) => pod.container(n).ok_or_else(|| format!("container {n} not found"))?,
                    None => container,
                };
                value = resource_field(of, selector, context.allocatable)?;
            } else if let Some(r) = &source.config_map_key_ref {
                let optional = r.optional == Some(true);
                let found = match sources.config_maps.get(&r.name).and_then(Option::as_ref) {
                    Some(m) => m.data.as_ref().and_then(|d| d.get(&r.key)),
                    None if optional => continue,
                    None => return Err(format!("configmap \"{}\" not found", r.name)),
                };
                match found {
                    Some(v) => value = v.clone(),
                    None if optional => continue,
                    None => {
                        let ns = pod.namespace();
                        return Err(format!("couldn't find key {} in ConfigMap {ns}/{}", r.key, r.name));
                    }
                }
            } else if let Some(r) = &source.secret_key_ref {
                let optional = r.optional == Some(true);
                let found = match sources.secrets.get(&r.name).and_then(Option::as_ref) {
                    Some(s) => s.data.as_ref().and_then(|d| d.get(&r.key)),
                    None if optional => continue,
                    None => return Err(format!("secret \"{}\" not found", r.name)),
                };
                match found {
                    Some(v) => value = text(v),
                    None if optional => continue,
                    None => {
                        let ns = pod.namespace();
                        return Err(format!("couldn't find key {} in Secret {ns}/{}", r.key, r.name));
                    }
                }
            }
        }
        services.remove(&e.name);
        out.variables.insert(e.name.clone(), value);
    }
    for (k, v) in services {
        out.variables.entry(k).or_insert(v);
    }
    Ok(out)
}

/// The variables that tell a pod of the services in its namespace, and of the API server.
pub fn service_variables(
    services: &[Arc<Service>],
    namespace: &str,
    links: bool,
) -> BTreeMap<String, String> {
    let mut chosen: BTreeMap<&str, &Service> = BTreeMap::new();
    for s in services {
        let spec = s.spec.as_ref();
        let ip = spec.and_then(|s| s.cluster_ip.as_deref()).unwrap_or("");
        if ip.is_empty() || ip == "None" {
            continue;
        }
        let (ns, name) =
            (s.metadata.namespace.as_deref().unwrap_or(""), s.metadata.name.as_deref().unwrap_or(""));
        if ns == namespace && links {
            chosen.insert(name, s);
        } else if ns == MASTER_NAMESPACE && name == MASTER_SERVICE {
            chosen.entry(name).or_insert(s);
        }
    }
    let mut out = BTreeMap::new();
    for (name, s) in chosen {
        variables_of(name, s, &mut out);
    }
    out
}

fn variable_name(name: &str) -> String {
    name.replace('-', "_").to_uppercase()
}

fn variables_of(name: &str, service: &Service, out: &mut BTreeMap<String, String>) {
    let Some(spec) = &service.spec else { return };
    let ip = spec.cluster_ip.as_deref().unwrap_or("");
    let bracketed = if ip.contains(':') { format!("[{ip}]") } else { ip.to_string() };
    let prefix = variable_name(name);
    let ports = spec.ports.as_deref().unwrap_or(&[]);
    out.insert(format!("{prefix}_SERVICE_HOST"), ip.to_string());
    if let Some(first) = ports.first() {
        out.insert(format!("{prefix}_SERVICE_PORT"), first.port.to_string());
    }
    for p in ports {
        if let Some(n) = p.name.as_deref().filter(|n| !n.is_empty()) {
            out.insert(format!("{prefix}_SERVICE_PORT_{}", variable_name(n)), p.port.to_string());
        }
    }
    for (i, p) in ports.iter().enumerate() {
        let protocol = p.protocol.as_deref().unwrap_or("TCP");
        let lower = protocol.to_lowercase();
        let url = format!("{lower}://{bracketed}:{}", p.port);
        if i == 0 {
            out.insert(format!("{prefix}_PORT"), url.clone());
        }
        let of_port = format!("{prefix}_PORT_{}_{}", p.port, protocol.to_uppercase());
        out.insert(format!("{of_port}_PROTO"), lower);
        out.insert(format!("{of_port}_PORT"), p.port.to_string());
        out.insert(format!("{of_port}_ADDR"), ip.to_string());
        out.insert(of_port, url);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn service(ns: &str, name: &str, ip: &str) -> Arc<Service> {
        Arc::new(
            serde_json::from_value(json!({"metadata": {"namespace": ns, "name": name},
                "spec": {"clusterIP": ip, "ports": [{"name": "https", "port": 443, "protocol": "TCP"}]}}))
            .unwrap(),
        )
    }

    fn run(
        container: Value,
        sources: Sources,
        services: BTreeMap<String, String>,
    ) -> Result<Environment, String> {
        let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "n"},
            "spec": {"containers": [container]}}))
        .unwrap();
        let context = Context { services, node: NodeFields::default(), allocatable: &Amounts::new() };
        environment(&pod, &pod.pod_spec().containers[0], &sources, &context)
    }

    fn sources() -> Sources {
        let map: ConfigMap =
            serde_json::from_value(json!({"data": {"a": "1", "B": "$(a)", "1x": "no"}})).unwrap();
        let secret: Secret = serde_json::from_value(json!({"data": {"pw": "Z2VoZWlt"}})).unwrap();
        Sources {
            config_maps: [("cm".to_string(), Some(Arc::new(map))), ("no".to_string(), None)].into(),
            secrets: [("s".to_string(), Some(Arc::new(secret))), ("no".to_string(), None)].into(),
        }
    }

    #[test]
    fn services_are_told_of() {
        let all = [
            service("default", "kubernetes", "10.0.0.1"),
            service("n", "my-web", "10.0.0.2"),
            service("n", "h", "None"),
        ];
        let v = service_variables(&all, "n", false);
        assert_eq!(v.len(), 8);
        assert_eq!(v["KUBERNETES_PORT_443_TCP"], "tcp://10.0.0.1:443");
        assert_eq!(v["KUBERNETES_SERVICE_PORT_HTTPS"], "443");
        assert_eq!(service_variables(&all, "n", true)["MY_WEB_SERVICE_HOST"], "10.0.0.2");
    }

    #[test]
    fn later_values_win_and_refer_to_earlier_ones() {
        let e = run(
            json!({"name": "c", "envFrom": [{"configMapRef": {"name": "cm"}, "prefix": ""}, {"secretRef": {"name": "s"}, "prefix": "S_"}],
                "env": [{"name": "A", "value": "1"}, {"name": "A", "value": "2"}, {"name": "Z", "value": "$(A)/$(B)/$(SVC)"},
                    {"name": "SVC", "value": "mine"},
                    {"name": "K", "valueFrom": {"configMapKeyRef": {"name": "cm", "key": "a"}}},
                    {"name": "O", "valueFrom": {"secretKeyRef": {"name": "no", "key": "a", "optional": true}}}]}),
            sources(),
            [("SVC".to_string(), "svc".to_string()), ("T".to_string(), "t".to_string())].into(),
        )
        .unwrap();
        let get = |k: &str| e.variables.get(k).map(String::as_str);
        assert_eq!(get("Z"), Some("2/$(a)/svc"));
        assert_eq!(
            (get("S_pw"), get("SVC"), get("T"), get("K"), get("O")),
            (Some("geheim"), Some("mine"), Some("t"), Some("1"), None)
        );
        assert_eq!(
            e.warnings,
            [
                "Keys [1x] from the EnvFrom configMap n/cm were skipped since they are considered invalid environment variable names."
            ]
        );
    }

    #[test]
    fn what_is_missing_is_named() {
        let from = |source: Value| {
            run(json!({"name": "c", "env": [{"name": "A", "valueFrom": source}]}), sources(), BTreeMap::new())
                .unwrap_err()
        };
        assert_eq!(
            from(json!({"configMapKeyRef": {"name": "no", "key": "k"}})),
            "configmap \"no\" not found"
        );
        assert_eq!(from(json!({"secretKeyRef": {"name": "no", "key": "k"}})), "secret \"no\" not found");
        assert_eq!(
            from(json!({"configMapKeyRef": {"name": "cm", "key": "k"}})),
            "couldn't find key k in ConfigMap n/cm"
        );
        assert_eq!(
            from(json!({"secretKeyRef": {"name": "s", "key": "k"}})),
            "couldn't find key k in Secret n/s"
        );
    }
}
