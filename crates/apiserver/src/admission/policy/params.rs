//! The objects that parameterize a policy.

use pilothouse_apimachinery::json::Value;
use pilothouse_apimachinery::selector::Selector;

use crate::json::{get, has, str_at};
use crate::request::{AdmissionRequest, Objects};

/// The parameters of a binding: one `Null` where the policy or the binding has none, nothing where none are found and
/// that is allowed. The error stands behind `failed to configure binding: `.
pub async fn of(
    policy: &Value,
    binding: &Value,
    r: &AdmissionRequest,
    objects: &dyn Objects,
) -> Result<Vec<Value>, String> {
    let kind = get(policy, &["spec", "paramKind"]);
    let reference = get(binding, &["spec", "paramRef"]);
    if !kind.is_object() || !reference.is_object() {
        return Ok(vec![Value::Null]);
    }
    let (api_version, kind) = (str_at(kind, &["apiVersion"]), str_at(kind, &["kind"]));
    let Some(found) = objects.resource_of(api_version, kind) else {
        return Err(format!("paramKind kind `{api_version}, Kind={kind}` not known"));
    };
    let wanted = str_at(reference, &["namespace"]);
    let namespace = match (found.namespaced, wanted) {
        (false, "") => "",
        (false, _) => {
            return Err("paramRef.namespace must not be provided for a cluster-scoped `paramKind`".into());
        }
        (true, "") if r.namespace.is_empty() => {
            return Err(
                "cannot use namespaced paramRef in policy binding that matches cluster-scoped resources"
                    .into(),
            );
        }
        (true, "") => r.namespace.as_str(),
        (true, wanted) => wanted,
    };
    let name = str_at(reference, &["name"]);
    let mut params = Vec::new();
    if !name.is_empty() {
        if has(reference, &["selector"]) {
            return Err("paramRef.name and paramRef.selector are mutually exclusive".into());
        }
        match objects.get_latest(&found.group, &found.resource, namespace, name).await {
            Ok(param) => params.push((*param).clone()),
            Err(e) if e.code == 404 => {}
            Err(e) => return Err(e.message),
        }
    } else if has(reference, &["selector"]) {
        let selector =
            Selector::from_label_selector(get(reference, &["selector"])).map_err(|e| e.to_string())?;
        // What has been written before is to be seen.
        objects.catch_up().await.map_err(|e| e.message)?;
        let all = objects.list(&found.group, &found.resource, namespace);
        params.extend(
            all.iter().filter(|o| selector.matches(get(o, &["metadata", "labels"]))).map(|o| (**o).clone()),
        );
    } else {
        return Err("one of name or selector must be provided".into());
    }
    if params.is_empty() && str_at(reference, &["parameterNotFoundAction"]) == "Deny" {
        return Err("no params found for policy binding with `Deny` parameterNotFoundAction".into());
    }
    let mut out = Vec::with_capacity(params.len());
    for param in params {
        out.push(
            objects
                .in_version(&found.group, &found.resource, param, api_version)
                .await
                .map_err(|e| e.message)?,
        );
    }
    Ok(out)
}
