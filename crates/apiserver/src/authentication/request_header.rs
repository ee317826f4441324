//! A proxy in front that has authenticated already and says who in headers
//! (<https://kubernetes.io/docs/tasks/extend-kubernetes/configure-aggregation-layer/>).

use bytes::Bytes;
use http::HeaderMap;

use super::x509::ClientCertificates;
use crate::config;
use crate::request::UserInfo;

/// Trusts the headers of proxies with a certificate of the right CA and name.
pub struct RequestHeader {
    certificates: ClientCertificates,
    config: config::RequestHeader,
}

impl RequestHeader {
    /// From the flags. Errors name the file.
    pub fn new(config: &config::RequestHeader) -> Result<RequestHeader, String> {
        Ok(RequestHeader {
            certificates: ClientCertificates::load(&config.client_ca)?,
            config: config.clone(),
        })
    }

    /// The user that a proxy vouches for; `None` where the client is no such proxy or names nobody.
    pub fn user(&self, headers: &HeaderMap, chain: &[Bytes]) -> Option<UserInfo> {
        if chain.is_empty() || self.config.username_headers.iter().all(|h| !headers.contains_key(h)) {
            return None;
        }
        let proxy = self.certificates.user(chain).ok()?;
        let allowed = &self.config.allowed_names;
        if !allowed.is_empty() && !allowed.contains(&proxy.name) {
            return None;
        }
        read(headers, &self.config)
    }
}

fn read(headers: &HeaderMap, config: &config::RequestHeader) -> Option<UserInfo> {
    let values = |name: &str| -> Vec<String> {
        headers
            .get_all(name)
            .iter()
            .filter_map(|v| v.to_str().ok())
            .filter(|v| !v.is_empty())
            .map(String::from)
            .collect()
    };
    let name = config.username_headers.iter().find_map(|h| values(h).into_iter().next())?;
    let groups = config.group_headers.iter().flat_map(|h| values(h)).collect();
    let mut user = UserInfo { name, groups, ..UserInfo::default() };
    for (header, value) in headers {
        let lower = header.as_str();
        let prefix = config.extra_prefixes.iter().find(|p| lower.starts_with(&p.to_ascii_lowercase()));
        if let (Some(prefix), Ok(value)) = (prefix, value.to_str()) {
            let key = super::super::impersonation::unescape_key(&lower[prefix.len()..]);
            user.extra.entry(key).or_default().push(value.to_string());
        }
    }
    Some(user)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_headers() {
        let config = config::RequestHeader {
            client_ca: "x".into(),
            allowed_names: vec![],
            username_headers: vec!["X-Remote-User".into()],
            group_headers: vec!["X-Remote-Group".into()],
            extra_prefixes: vec!["X-Remote-Extra-".into()],
        };
        let mut h = HeaderMap::new();
        assert_eq!(read(&h, &config), None);
        h.insert("x-remote-user", "u".parse().unwrap());
        h.append("x-remote-group", "a".parse().unwrap());
        h.append("x-remote-group", "b".parse().unwrap());
        h.append("x-remote-extra-acme.com%2fkey", "v".parse().unwrap());
        let user = read(&h, &config).unwrap();
        assert_eq!((user.name.as_str(), user.groups.len()), ("u", 2));
        assert_eq!(user.extra["acme.com/key"], ["v"]);
    }
}
