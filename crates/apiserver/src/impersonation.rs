//! Acting as somebody else: `Impersonate-*` headers
//! (<https://kubernetes.io/docs/reference/access-authn-authz/authentication/#user-impersonation>).

use http::HeaderMap;
use pilothouse_apimachinery::status::Status;
use pilothouse_apimachinery::version::Release;

use crate::authentication::{ANONYMOUS, AUTHENTICATED, UNAUTHENTICATED};
use crate::authorization::forbidden;
use crate::request::{Attributes, Authorizer, Decision, RequestInfo, UserInfo};

const USER: &str = "impersonate-user";
const GROUP: &str = "impersonate-group";
const UID: &str = "impersonate-uid";
const EXTRA: &str = "impersonate-extra-";

/// One thing that the request wants to be: what the `impersonate` verb is asked about.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Wish {
    group: &'static str,
    resource: &'static str,
    subresource: String,
    namespace: String,
    name: String,
}

/// Percent-decodes a key of an extra header; bad escapes stay as they are.
pub fn unescape_key(key: &str) -> String {
    let bytes = key.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        let hex = (bytes[i] == b'%').then(|| key.get(i + 1..i + 3)).flatten();
        match hex.and_then(|h| u8::from_str_radix(h, 16).ok()) {
            Some(b) => {
                out.push(b);
                i += 3;
            }
            None => {
                out.push(bytes[i]);
                i += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Namespace and name of a service account's user name.
fn service_account(user: &str) -> Option<(&str, &str)> {
    let (namespace, name) = user.strip_prefix("system:serviceaccount:")?.split_once(':')?;
    (!namespace.is_empty() && !name.is_empty() && !name.contains(':')).then_some((namespace, name))
}

/// What the headers ask for, and who that is; `None` where they ask for nothing.
fn wishes(headers: &HeaderMap, release: Release) -> Result<Option<(Vec<Wish>, UserInfo)>, Status> {
    let values = |name: &str| -> Vec<String> {
        headers.get_all(name).iter().filter_map(|v| v.to_str().ok()).map(String::from).collect()
    };
    let name = headers.get(USER).and_then(|v| v.to_str().ok()).unwrap_or("").to_string();
    let groups: Vec<String> = values(GROUP);
    let mut extra: Vec<(String, String)> = Vec::new();
    for (header, value) in headers {
        if let (Some(key), Ok(value)) = (header.as_str().strip_prefix(EXTRA), value.to_str()) {
            extra.push((unescape_key(key), value.to_string()));
        }
    }
    // v1.20 does not know the uid header.
    let uid =
        if release > Release::V1_20 { values(UID).into_iter().next() } else { None }.unwrap_or_default();
    if name.is_empty() {
        let orphan = !groups.is_empty() || !extra.is_empty() || !uid.is_empty();
        return if orphan {
            Err(Status::internal(format!(
                "requested [{}] without impersonating a user",
                asked(&groups, &extra).join(" ")
            )))
        } else {
            Ok(None)
        };
    }
    let wish = |group, resource, subresource: &str, namespace: &str, name: &str| Wish {
        group,
        resource,
        subresource: subresource.into(),
        namespace: namespace.into(),
        name: name.into(),
    };
    let mut list = Vec::new();
    match service_account(&name) {
        Some((namespace, account)) => list.push(wish("", "serviceaccounts", "", namespace, account)),
        None => list.push(wish("", "users", "", "", &name)),
    }
    list.extend(groups.iter().map(|g| wish("", "groups", "", "", g)));
    list.extend(extra.iter().map(|(k, v)| wish("authentication.k8s.io", "userextras", k, "", v)));
    if !uid.is_empty() {
        list.push(wish("authentication.k8s.io", "uids", "", "", &uid));
    }
    let mut user = UserInfo { name, uid, groups, ..UserInfo::default() };
    for (k, v) in extra {
        user.extra.entry(k).or_default().push(v);
    }
    Ok(Some((list, user)))
}

/// What was asked for without a user, as Go prints references to objects: their fields, most of them empty.
fn asked(groups: &[String], extra: &[(String, String)]) -> Vec<String> {
    let groups = groups.iter().map(|g| format!("{{Group  {g}    }}"));
    let extra = extra.iter().map(|(k, v)| format!("{{UserExtra  {v}  authentication.k8s.io/v1  {k}}}"));
    groups.chain(extra).collect()
}

/// The groups that come with being somebody.
fn complete(mut user: UserInfo) -> UserInfo {
    if user.groups.is_empty()
        && let Some((namespace, _)) = service_account(&user.name)
    {
        user.groups = vec!["system:serviceaccounts".into(), format!("system:serviceaccounts:{namespace}")];
    }
    let said = user.groups.iter().any(|g| g == AUTHENTICATED || g == UNAUTHENTICATED);
    if user.name == ANONYMOUS {
        if !said {
            user.groups.push(UNAUTHENTICATED.into());
        }
    } else if !said {
        user.groups.push(AUTHENTICATED.into());
    }
    user
}

/// Who the request is to be made as: `None` where nobody is impersonated, 403 where the user may not.
pub async fn impersonate(
    headers: &HeaderMap,
    user: &UserInfo,
    authorizer: &dyn Authorizer,
    release: Release,
) -> Result<Option<UserInfo>, Status> {
    let Some((wishes, wanted)) = wishes(headers, release)? else { return Ok(None) };
    for w in wishes {
        let request = RequestInfo {
            is_resource: true,
            verb: "impersonate".into(),
            group: w.group.into(),
            resource: w.resource.into(),
            subresource: w.subresource,
            namespace: w.namespace,
            name: w.name,
            ..RequestInfo::default()
        };
        let attributes = Attributes { user, request: &request };
        match authorizer.authorize(attributes).await {
            Decision::Allow => {}
            Decision::Deny(why) | Decision::NoOpinion(why) => return Err(forbidden(attributes, &why)),
        }
    }
    Ok(Some(complete(wanted)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use async_trait::async_trait;
    use pilothouse_apimachinery::json::Value;

    struct Only(&'static [&'static str]);

    #[async_trait]
    impl Authorizer for Only {
        async fn authorize(&self, a: Attributes<'_>) -> Decision {
            let r = a.request;
            let what = format!("{}/{}/{}", r.resource, r.subresource, r.name);
            if self.0.contains(&what.as_str()) { Decision::Allow } else { Decision::NoOpinion(String::new()) }
        }

        async fn rules_for(&self, _: &UserInfo, _: &str) -> (Vec<Value>, Vec<Value>, bool) {
            (vec![], vec![], true)
        }
    }

    fn headers(list: &[(&'static str, &str)]) -> HeaderMap {
        let mut h = HeaderMap::new();
        for (k, v) in list {
            h.append(*k, v.parse().unwrap());
        }
        h
    }

    #[tokio::test]
    async fn every_attribute_is_asked_for() {
        let me = UserInfo { name: "me".into(), ..Default::default() };
        let h = headers(&[
            ("impersonate-user", "jane"),
            ("impersonate-group", "devs"),
            ("impersonate-extra-a%2fb", "v"),
        ]);
        let all = Only(&["users//jane", "groups//devs", "userextras/a/b/v"]);
        let user = impersonate(&h, &me, &all, Release::V1_20).await.unwrap().unwrap();
        assert_eq!(user.groups, ["devs", "system:authenticated"]);
        assert_eq!(user.extra["a/b"], ["v"]);
        let e = impersonate(&h, &me, &Only(&["users//jane"]), Release::V1_20).await.unwrap_err();
        assert_eq!(
            e.message,
            r#"groups "devs" is forbidden: User "me" cannot impersonate resource "groups" in API group "" at the cluster scope"#
        );
        assert_eq!(impersonate(&headers(&[]), &me, &Only(&[]), Release::V1_20).await, Ok(None));
        let e = impersonate(&headers(&[("impersonate-group", "x")]), &me, &Only(&[]), Release::V1_20).await;
        assert_eq!(e.unwrap_err().code, 500);
    }

    #[tokio::test]
    async fn service_accounts_have_their_groups() {
        let me = UserInfo { name: "me".into(), ..Default::default() };
        let h = headers(&[("impersonate-user", "system:serviceaccount:n:bot")]);
        let user =
            impersonate(&h, &me, &Only(&["serviceaccounts//bot"]), Release::V1_20).await.unwrap().unwrap();
        assert_eq!(
            user.groups,
            ["system:serviceaccounts", "system:serviceaccounts:n", "system:authenticated"]
        );
    }
}
