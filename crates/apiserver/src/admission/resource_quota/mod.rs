//! `ResourceQuota`: nobody takes more of a namespace than its quotas grant
//! (<https://kubernetes.io/docs/concepts/policy/resource-quotas/>).

pub mod scopes;
pub mod usage;

use std::sync::Arc;

use async_trait::async_trait;
use pilothouse_apimachinery::json::{Value, json};
use pilothouse_apimachinery::status::Status;

use self::usage::{Amounts, amounts};
use crate::json::{get, set, str_at};
use crate::request::{AdmissionRequest, Objects, Operation, Validation};

/// The plug-in.
pub struct ResourceQuota;

fn shown(amounts: &Amounts) -> String {
    amounts.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(",")
}

fn only(amounts: &Amounts, names: &Amounts) -> Amounts {
    amounts.iter().filter(|(k, _)| names.contains_key(*k)).map(|(k, v)| (k.clone(), v.clone())).collect()
}

/// Adds the cost of an object of a resource to what a quota says is used, or says why that is not granted.
fn charge(quota: &mut Value, (group, resource): (&str, &str), cost: &Amounts) -> Result<(), String> {
    let name = str_at(quota, &["metadata", "name"]).to_string();
    let hard = amounts(get(quota, &["status", "hard"]));
    let used = amounts(get(quota, &["status", "used"]));
    let bounded = usage::bounded(group, resource, &hard);
    if bounded.iter().any(|k| !used.contains_key(*k)) {
        return Err(format!("status unknown for quota: {name}, resources: {}", bounded.join(",")));
    }
    let cost = only(cost, &hard);
    let mut next = Amounts::new();
    let mut exceeded = Amounts::new();
    for (k, c) in &cost {
        let mut sum = used[k].clone();
        sum.add(c);
        if sum > hard[k] {
            exceeded.insert(k.clone(), c.clone());
        }
        next.insert(k.clone(), sum);
    }
    if !exceeded.is_empty() {
        return Err(format!(
            "exceeded quota: {name}, requested: {}, used: {}, limited: {}",
            shown(&exceeded),
            shown(&only(&used, &exceeded)),
            shown(&only(&hard, &exceeded))
        ));
    }
    for (k, v) in next {
        set(quota, &["status", "used", &k], json!(v.canonical()));
    }
    Ok(())
}

/// Takes a cost back.
fn refund(quota: &mut Value, cost: &Amounts) {
    let used = amounts(get(quota, &["status", "used"]));
    for (k, c) in cost {
        if let Some(u) = used.get(k) {
            let mut rest = u.clone();
            rest.sub(c);
            set(quota, &["status", "used", k], json!(rest.canonical()));
        }
    }
}

/// Whether a request can cost something.
fn is_counted(r: &AdmissionRequest) -> bool {
    if r.namespace.is_empty()
        || !r.subresource.is_empty()
        || (r.group.is_empty() && r.resource == "namespaces")
    {
        return false;
    }
    match r.operation {
        Operation::Create => true,
        Operation::Update => {
            r.group.is_empty() && matches!(r.resource.as_str(), "services" | "persistentvolumeclaims")
        }
        _ => false,
    }
}

/// Those of a namespace's quotas that a request is charged to.
fn charged(mut all: Vec<Arc<Value>>, r: &AdmissionRequest) -> Vec<Arc<Value>> {
    all.retain(|q| {
        let hard = amounts(get(q, &["status", "hard"]));
        scopes::counts(q, &r.resource, &r.object) && !usage::bounded(&r.group, &r.resource, &hard).is_empty()
    });
    all
}

#[async_trait]
impl Validation for ResourceQuota {
    async fn validate(&self, r: &AdmissionRequest, objects: &dyn Objects) -> Result<(), Status> {
        if !is_counted(r) {
            return Ok(());
        }
        let quotas = objects.list("", "resourcequotas", &r.namespace);
        if quotas.is_empty() {
            return Ok(());
        }
        let cost = usage::increase(&r.group, &r.resource, &r.object, &r.old_object);
        if cost.is_empty() {
            return Ok(());
        }
        let quotas = charged(quotas, r);
        let what = (r.group.as_str(), r.resource.as_str());
        for q in &quotas {
            let hard = amounts(get(q, &["status", "hard"]));
            let unstated = if r.resource == "pods" { usage::unstated(&r.object, &hard) } else { Vec::new() };
            if !unstated.is_empty() {
                let why = format!(
                    "failed quota: {}: must specify {}",
                    str_at(q, &["metadata", "name"]),
                    unstated.join(",")
                );
                return Err(super::forbidden(r, why));
            }
            // What the cache says decides unless it says no: it may not know yet what was given back.
            if r.dry_run {
                charge(&mut (**q).clone(), what, &cost).map_err(|why| super::forbidden(r, why))?;
            }
        }
        if r.dry_run {
            return Ok(());
        }
        let mut done: Vec<&str> = Vec::new();
        for q in &quotas {
            let name = str_at(q, &["metadata", "name"]);
            let change = |q: &mut Value| charge(q, what, &cost).map_err(|why| super::forbidden(r, why));
            if let Err(e) = objects.update("", "resourcequotas", "status", &r.namespace, name, &change).await
            {
                for name in done {
                    let back = |q: &mut Value| {
                        refund(q, &cost);
                        Ok(())
                    };
                    if let Err(e) =
                        objects.update("", "resourcequotas", "status", &r.namespace, name, &back).await
                    {
                        tracing::debug!("quota {name} is corrected by its controller: {e}");
                    }
                }
                return Err(e);
            }
            done.push(name);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::test_create;
    use crate::testing::FakeObjects;

    fn quota(name: &str, hard: Value, used: Value) -> Value {
        json!({"metadata": {"name": name, "namespace": "n"}, "spec": {"hard": hard}, "status": {"hard": hard, "used": used}})
    }

    fn pod(resources: Value) -> AdmissionRequest {
        let spec = json!({"containers": [{"name": "c", "resources": resources}]});
        test_create("", "pods", "Pod", json!({"metadata": {"name": "p", "namespace": "n"}, "spec": spec}))
    }

    #[tokio::test]
    async fn charges_and_refuses() {
        let o = FakeObjects::default();
        o.put(
            "",
            "resourcequotas",
            quota("q", json!({"pods": "2", "requests.cpu": "1"}), json!({"pods": "1", "requests.cpu": "0"})),
        );
        let ask = pod(json!({"requests": {"cpu": "500m"}}));
        ResourceQuota.validate(&ask, &o).await.unwrap();
        let q = o.get("", "resourcequotas", "n", "q").unwrap();
        assert_eq!(q["status"]["used"], json!({"pods": "2", "requests.cpu": "500m"}));
        assert_eq!(
            ResourceQuota.validate(&ask, &o).await.unwrap_err().message,
            "pods \"p\" is forbidden: exceeded quota: q, requested: pods=1, used: pods=2, limited: pods=2"
        );
        assert_eq!(
            ResourceQuota.validate(&pod(json!({})), &o).await.unwrap_err().message,
            "pods \"p\" is forbidden: failed quota: q: must specify requests.cpu"
        );
    }

    #[tokio::test]
    async fn a_refusal_charges_nobody() {
        let o = FakeObjects::default();
        o.put("", "resourcequotas", quota("a", json!({"pods": "5"}), json!({"pods": "0"})));
        o.put("", "resourcequotas", quota("b", json!({"pods": "0"}), json!({"pods": "0"})));
        ResourceQuota.validate(&pod(json!({})), &o).await.unwrap_err();
        assert_eq!(o.get("", "resourcequotas", "n", "a").unwrap()["status"]["used"]["pods"], "0");
        let (hard, used) = (json!({"pods": "5", "count/pods": "9", "services": "1"}), json!({"pods": "0"}));
        o.put("", "resourcequotas", quota("b", hard, used));
        let e = ResourceQuota.validate(&pod(json!({})), &o).await.unwrap_err();
        assert!(e.message.ends_with("status unknown for quota: b, resources: count/pods,pods"));
    }
}
