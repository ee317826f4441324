//! `LimitRanger`: a namespace's LimitRange objects set containers' default resources, and bound them.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use pilothouse_apimachinery::json::Value;
use pilothouse_apimachinery::quantity::{Format, Quantity};
use pilothouse_apimachinery::status::Status;

use crate::json::{self, get, list_at, str_at};
use crate::request::{AdmissionRequest, Mutation, Objects, Operation, Validation};

use super::is_about;

/// The plug-in.
pub struct LimitRanger;

/// Amounts by resource.
type Amounts = BTreeMap<String, Quantity>;

/// The amounts of an object of quantities; those that do not parse are left out, validation complains of them.
fn amounts(v: &Value) -> Amounts {
    let map = v.as_object().into_iter().flatten();
    map.filter_map(|(k, q)| Some((k.to_string(), Quantity::parse(q.as_str()?).ok()?))).collect()
}

fn ranges(r: &AdmissionRequest, objects: &dyn Objects) -> Vec<Arc<Value>> {
    let pod = is_about(r, "", "pods") && r.operation == Operation::Create;
    let claim = is_about(r, "", "persistentvolumeclaims")
        && matches!(r.operation, Operation::Create | Operation::Update);
    if pod || claim { objects.list("", "limitranges", &r.namespace) } else { Vec::new() }
}

/// The items of a LimitRange of one type.
fn of_type<'a>(range: &'a Value, type_: &'a str) -> impl Iterator<Item = &'a Value> {
    list_at(range, &["spec", "limits"]).iter().filter(move |l| str_at(l, &["type"]) == type_)
}

/// Sets a container's missing requests and limits, and says which.
fn set_defaults(container: &mut Value, range: &Value, what: &str, told: &mut Vec<String>) {
    let name = str_at(container, &["name"]).to_string();
    for (from, to, word) in [("defaultRequest", "requests", "request"), ("default", "limits", "limit")] {
        let mut set = Vec::new();
        for item in of_type(range, "Container") {
            for (resource, amount) in get(item, &[from]).as_object().into_iter().flatten() {
                if get(container, &["resources", to, resource]).is_null() {
                    json::set(container, &["resources", to, resource], amount.clone());
                    set.push(resource.clone());
                }
            }
        }
        if !set.is_empty() {
            set.sort();
            told.push(format!("{} {word} for {what} {name}", set.join(", ")));
        }
    }
}

/// What a bound is about, as messages name it.
struct Check<'a> {
    type_: &'a str,
    requests: &'a Amounts,
    limits: &'a Amounts,
    claim: bool,
}

impl Check<'_> {
    fn faults(&self, item: &Value, out: &mut Vec<String>) {
        let t = self.type_;
        for (n, min) in amounts(get(item, &["min"])) {
            match (self.requests.get(&n), self.limits.get(&n)) {
                (None, _) => {
                    out.push(format!("minimum {n} usage per {t} is {min}.  No request is specified"))
                }
                (Some(q), _) if *q < min => {
                    out.push(format!("minimum {n} usage per {t} is {min}, but request is {q}"))
                }
                (_, Some(l)) if *l < min => {
                    out.push(format!("minimum {n} usage per {t} is {min}, but limit is {l}"))
                }
                _ => {}
            }
        }
        for (n, max) in amounts(get(item, &["max"])) {
            match (self.requests.get(&n), self.limits.get(&n)) {
                (None, _) if self.claim => {
                    out.push(format!("maximum {n} usage per {t} is {max}.  No request is specified"));
                }
                (_, None) if !self.claim => {
                    out.push(format!("maximum {n} usage per {t} is {max}.  No limit is specified"));
                }
                (_, Some(l)) if *l > max => {
                    out.push(format!("maximum {n} usage per {t} is {max}, but limit is {l}"))
                }
                (Some(q), _) if *q > max => {
                    out.push(format!("maximum {n} usage per {t} is {max}, but request is {q}"))
                }
                _ => {}
            }
        }
        for (n, ratio) in amounts(get(item, &["maxLimitRequestRatio"])) {
            let head = format!("{n} max limit to request ratio per {t} is {ratio}, but");
            let positive = |a: &Amounts| a.get(&n).filter(|q| !q.is_zero()).map(Quantity::as_f64);
            match (positive(self.requests), positive(self.limits)) {
                (None, _) => out.push(format!("{head} no request is specified or request is 0")),
                (_, None) => out.push(format!("{head} no limit is specified or limit is 0")),
                (Some(q), Some(l)) if l / q > ratio.as_f64() => {
                    out.push(format!("{head} provided ratio is {:.6}", l / q));
                }
                _ => {}
            }
        }
    }
}

/// What a pod asks for as a whole: the sum of its containers, or its greediest init container where that is more. Of
/// what one container says nothing of, there is no sum.
fn pod_total(spec: &Value, which: &str) -> Amounts {
    let all: Vec<Amounts> =
        list_at(spec, &["containers"]).iter().map(|c| amounts(get(c, &["resources", which]))).collect();
    let mut total = Amounts::new();
    for n in all.first().into_iter().flat_map(Amounts::keys) {
        let each: Option<Vec<&Quantity>> = all.iter().map(|a| a.get(n)).collect();
        let Some(each) = each else { continue };
        let sum = if n == "cpu" {
            Quantity::from_milli(each.iter().map(|q| q.milli_value()).sum(), Format::DecimalSi)
        } else {
            Quantity::from_value(each.iter().map(|q| q.value()).sum(), Format::DecimalSi)
        };
        total.insert(n.clone(), sum);
    }
    for c in list_at(spec, &["initContainers"]) {
        for (n, q) in amounts(get(c, &["resources", which])) {
            let t = total.entry(n).or_insert_with(|| q.clone());
            if q > *t {
                *t = q;
            }
        }
    }
    total
}

fn pod_faults(range: &Value, pod: &Value) -> Vec<String> {
    let mut out = Vec::new();
    let spec = get(pod, &["spec"]);
    for item in of_type(range, "Container") {
        for c in list_at(spec, &["containers"]).iter().chain(list_at(spec, &["initContainers"])) {
            let (requests, limits) =
                (amounts(get(c, &["resources", "requests"])), amounts(get(c, &["resources", "limits"])));
            Check { type_: "Container", requests: &requests, limits: &limits, claim: false }
                .faults(item, &mut out);
        }
    }
    for item in of_type(range, "Pod") {
        let (requests, limits) = (pod_total(spec, "requests"), pod_total(spec, "limits"));
        Check { type_: "Pod", requests: &requests, limits: &limits, claim: false }.faults(item, &mut out);
    }
    out
}

fn claim_faults(range: &Value, claim: &Value) -> Vec<String> {
    let mut out = Vec::new();
    let requests = amounts(get(claim, &["spec", "resources", "requests"]));
    for item in of_type(range, "PersistentVolumeClaim") {
        let check = Check {
            type_: "PersistentVolumeClaim",
            requests: &requests,
            limits: &Amounts::new(),
            claim: true,
        };
        check.faults(item, &mut out);
    }
    out
}

#[async_trait]
impl Mutation for LimitRanger {
    async fn admit(&self, r: &mut AdmissionRequest, objects: &dyn Objects) -> Result<(), Status> {
        if r.resource != "pods" {
            return Ok(());
        }
        for range in ranges(r, objects) {
            let mut told = Vec::new();
            for (list, what) in [("containers", "container"), ("initContainers", "init container")] {
                for c in json::list_mut(&mut r.object, &["spec", list]) {
                    set_defaults(c, &range, what, &mut told);
                }
            }
            // What the last of several ranges set is told.
            if !told.is_empty() {
                let text = format!("LimitRanger plugin set: {}", told.join("; "));
                json::set(&mut r.object, &["metadata", "annotations", "kubernetes.io/limit-ranger"], text);
            }
        }
        Ok(())
    }
}

#[async_trait]
impl Validation for LimitRanger {
    async fn validate(&self, r: &AdmissionRequest, objects: &dyn Objects) -> Result<(), Status> {
        for range in ranges(r, objects) {
            let mut faults = if r.resource == "pods" {
                pod_faults(&range, &r.object)
            } else {
                claim_faults(&range, &r.object)
            };
            faults.dedup();
            match faults.as_slice() {
                [] => {}
                [one] => return Err(super::forbidden(r, one)),
                many => return Err(super::forbidden(r, format!("[{}]", many.join(", ")))),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::test_create;
    use crate::testing::FakeObjects;
    use pilothouse_apimachinery::json::json;

    fn world(item: Value) -> FakeObjects {
        let o = FakeObjects::default();
        o.put(
            "",
            "limitranges",
            json!({"metadata": {"name": "lr", "namespace": "n"}, "spec": {"limits": [item]}}),
        );
        o
    }

    fn pod(resources: Value) -> AdmissionRequest {
        let spec = json!({"containers": [{"name": "c", "resources": resources}]});
        test_create("", "pods", "Pod", json!({"metadata": {"name": "p", "namespace": "n"}, "spec": spec}))
    }

    #[tokio::test]
    async fn sets_defaults_and_says_so() {
        let o = world(
            json!({"type": "Container", "default": {"cpu": "500m", "memory": "1Gi"}, "defaultRequest": {"cpu": "100m"}}),
        );
        let mut r = pod(json!({"limits": {"memory": "2Gi"}}));
        LimitRanger.admit(&mut r, &o).await.unwrap();
        let c = &r.object["spec"]["containers"][0]["resources"];
        assert_eq!(*c, json!({"limits": {"memory": "2Gi", "cpu": "500m"}, "requests": {"cpu": "100m"}}));
        assert_eq!(
            r.object["metadata"]["annotations"]["kubernetes.io/limit-ranger"],
            "LimitRanger plugin set: cpu request for container c; cpu limit for container c"
        );
    }

    #[tokio::test]
    async fn a_pod_is_the_sum_of_its_containers() {
        let o = world(json!({"type": "Pod", "max": {"memory": "100Mi"}}));
        let say = |containers: Value| {
            let o = &o;
            let pod =
                json!({"metadata": {"name": "p", "namespace": "n"}, "spec": {"containers": containers}});
            async move {
                LimitRanger.validate(&test_create("", "pods", "Pod", pod), o).await.map_err(|e| e.message)
            }
        };
        let c = json!({"resources": {"limits": {"memory": "64Mi"}}});
        let head = "pods \"p\" is forbidden: maximum memory usage per Pod is 100Mi";
        assert_eq!(say(json!([c, c])).await, Err(format!("{head}, but limit is 134217728")));
        assert_eq!(say(json!([c, {}])).await, Err(format!("{head}.  No limit is specified")));
        assert_eq!(say(json!([c])).await, Ok(()));
    }

    #[tokio::test]
    async fn refuses_what_is_out_of_bounds() {
        let o = world(
            json!({"type": "Container", "max": {"cpu": "500m"}, "min": {"cpu": "100m"}, "maxLimitRequestRatio": {"cpu": "2"}}),
        );
        let say = |resources: Value| {
            let o = &o;
            async move { LimitRanger.validate(&pod(resources), o).await.map_err(|e| e.message) }
        };
        assert_eq!(say(json!({"requests": {"cpu": "250m"}, "limits": {"cpu": "500m"}})).await, Ok(()));
        let head = "pods \"p\" is forbidden: ";
        assert_eq!(
            say(json!({"requests": {"cpu": "500m"}, "limits": {"cpu": "1"}})).await,
            Err(format!("{head}maximum cpu usage per Container is 500m, but limit is 1"))
        );
        assert_eq!(
            say(json!({"requests": {"cpu": "100m"}, "limits": {"cpu": "400m"}})).await,
            Err(format!(
                "{head}cpu max limit to request ratio per Container is 2, but provided ratio is 4.000000"
            ))
        );
        assert_eq!(
            say(json!({})).await,
            Err(format!(
                "{head}[minimum cpu usage per Container is 100m.  No request is specified, \
                 maximum cpu usage per Container is 500m.  No limit is specified, \
                 cpu max limit to request ratio per Container is 2, but no request is specified or request is 0]"
            ))
        );
    }
}
