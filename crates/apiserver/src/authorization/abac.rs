//! Attribute-based access control: one JSON object a line in a file
//! (<https://kubernetes.io/docs/reference/access-authn-authz/abac/>).

use std::path::Path;

use serde::Deserialize;

use crate::request::{Attributes, Decision, UserInfo};

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct Line {
    #[serde(default)]
    spec: Spec,
}

/// One policy.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Spec {
    user: String,
    group: String,
    readonly: bool,
    api_group: String,
    resource: String,
    namespace: String,
    #[serde(rename = "nonResourcePath")]
    path: String,
}

/// Reads a policy file. Errors name file and line.
pub fn load(path: &Path) -> Result<Vec<Spec>, String> {
    let name = path.display();
    let text = std::fs::read_to_string(path).map_err(|e| format!("open {name}: {e}"))?;
    let mut out = Vec::new();
    for (i, line) in text.lines().map(str::trim).enumerate() {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let parsed: Line = serde_json::from_str(line)
            .map_err(|e| format!("error reading policy file {name}, line {i}: {line}: {e}"))?;
        out.push(parsed.spec);
    }
    Ok(out)
}

impl Spec {
    fn is_about(&self, user: &UserInfo) -> bool {
        let mut said = false;
        for (wanted, has) in
            [(&self.user, user.name == self.user), (&self.group, user.groups.contains(&self.group))]
        {
            if wanted.is_empty() {
                continue;
            }
            said = true;
            if wanted != "*" && !has {
                return false;
            }
        }
        said
    }

    fn allows(&self, a: Attributes<'_>) -> bool {
        let r = a.request;
        let read = matches!(r.verb.as_str(), "get" | "list" | "watch");
        if !self.is_about(a.user) || (self.readonly && !read) {
            return false;
        }
        let fits = |pattern: &str, value: &str| pattern == "*" || pattern == value;
        if r.is_resource {
            fits(&self.namespace, &r.namespace)
                && fits(&self.resource, &r.resource)
                && fits(&self.api_group, &r.group)
        } else {
            fits(&self.path, &r.path)
                || self.path.strip_suffix('*').is_some_and(|prefix| r.path.starts_with(prefix))
        }
    }
}

/// Decides by policies.
pub fn authorize(policies: &[Spec], attributes: Attributes<'_>) -> Decision {
    if policies.iter().any(|p| p.allows(attributes)) {
        return Decision::Allow;
    }
    Decision::NoOpinion("No policy matched.".into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::RequestInfo;

    #[test]
    fn matches_policies() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("p");
        std::fs::write(&file, "# c\n{\"spec\":{\"user\":\"bob\",\"namespace\":\"n\",\"resource\":\"pods\",\"readonly\":true}}\n").unwrap();
        let p = load(&file).unwrap();
        let user = UserInfo { name: "bob".into(), ..Default::default() };
        let mut request = RequestInfo {
            is_resource: true,
            verb: "get".into(),
            resource: "pods".into(),
            namespace: "n".into(),
            ..Default::default()
        };
        assert_eq!(authorize(&p, Attributes { user: &user, request: &request }), Decision::Allow);
        request.verb = "delete".into();
        assert_ne!(authorize(&p, Attributes { user: &user, request: &request }), Decision::Allow);
        std::fs::write(&file, "{").unwrap();
        assert!(load(&file).unwrap_err().contains("line 0"));
    }
}
