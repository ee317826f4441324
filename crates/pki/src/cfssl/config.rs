//! Signing configurations (`ca-config.json`): what certificates of a profile may be used for and how long they hold.

use std::collections::BTreeMap;
use std::time::Duration;

use pilothouse_apimachinery::time::parse_duration;
use rcgen::{BasicConstraints, CertificateParams, IsCa};
use serde::Deserialize;
use time::OffsetDateTime;

use super::Fault;
use crate::authority::{extended_key_usage, key_usage};

/// What `print-defaults config` shows.
pub(super) const DEFAULT: &str = r#"{
    "signing": {
        "default": {
            "expiry": "8760h"
        },
        "profiles": {
            "kubernetes": {
                "expiry": "87600h",
                "usages": [
                    "signing",
                    "key encipherment",
                    "server auth",
                    "client auth"
                ]
            }
        }
    }
}
"#;

/// A certificate's time begins a little before it was made: clocks differ.
const BACKDATE: Duration = Duration::from_secs(300);

#[derive(Debug, Deserialize)]
struct Config {
    signing: Signing,
}

#[derive(Debug, Deserialize)]
struct Signing {
    default: Option<Profile>,
    profiles: Option<BTreeMap<String, Profile>>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Profile {
    usages: Vec<String>,
    expiry: String,
    backdate: String,
    ca_constraint: CaConstraint,
    // What cfssl can do and this program cannot: refused, rather than left out of the certificate.
    ocsp_url: String,
    crl_url: String,
    issuer_urls: Vec<String>,
    remote: String,
    auth_key: String,
    not_before: String,
    not_after: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct CaConstraint {
    is_ca: bool,
    max_path_len: u8,
    max_path_len_zero: bool,
}

/// How certificates are signed: a profile that has been checked.
#[derive(Debug, Clone)]
pub(super) struct Policy {
    usages: Vec<String>,
    expiry: Duration,
    backdate: Duration,
    is_ca: IsCa,
}

impl Policy {
    /// Where there is no configuration: servers and clients, a year.
    pub fn standard() -> Policy {
        Policy {
            usages: ["signing", "key encipherment", "server auth", "client auth"].map(String::from).to_vec(),
            expiry: Duration::from_secs(8760 * 3600),
            backdate: BACKDATE,
            is_ca: IsCa::ExplicitNoCa,
        }
    }

    /// A certificate authority's own, which holds for `expiry` (five years where that is empty).
    pub fn authority(expiry: &str, backdate: &str, path: Option<u8>) -> Result<Policy, String> {
        Ok(Policy {
            usages: ["cert sign", "crl sign"].map(String::from).to_vec(),
            expiry: if expiry.is_empty() {
                Duration::from_secs(43_800 * 3600)
            } else {
                duration("expiry", expiry)?
            },
            backdate: if backdate.is_empty() { BACKDATE } else { duration("backdate", backdate)? },
            is_ca: constraint(path),
        })
    }

    /// The profile of that name in a configuration's text; the default one where it has none of that name. `path` is
    /// named in errors.
    pub fn from_config(text: &str, path: &str, profile: &str) -> Result<Policy, Fault> {
        let config: Config = serde_json::from_str(text).map_err(|e| Fault::Input(format!("{path}: {e}")))?;
        let mut profiles = config.signing.profiles.unwrap_or_default();
        let (found, name) = match profiles.remove(profile) {
            Some(p) => (p, format!("profile {profile:?}")),
            None => {
                let missing = if profile.is_empty() {
                    "no profile is named".to_string()
                } else {
                    format!("there is no profile {profile:?}")
                };
                match config.signing.default {
                    Some(d) if !d.usages.is_empty() => (d, "signing.default".to_string()),
                    _ => {
                        let why = "and signing.default has no usages";
                        return Err(Fault::Input(format!("{path}: {missing}, {why}")));
                    }
                }
            }
        };
        found.checked().map_err(|e| Fault::Input(format!("{path}: {name}: {e}")))
    }

    /// Puts times, usages and constraints into a certificate's parameters. `now` is rounded to the minute.
    pub fn apply(&self, params: &mut CertificateParams, now: OffsetDateTime) -> Result<(), Fault> {
        let seconds = now.unix_timestamp() + 30;
        let begin = OffsetDateTime::from_unix_timestamp(seconds - seconds.rem_euclid(60))
            .ok()
            .and_then(|t| t.checked_sub(time::Duration::try_from(self.backdate).ok()?));
        let end = begin.and_then(|t| t.checked_add(time::Duration::try_from(self.expiry).ok()?));
        let (Some(begin), Some(end)) = (begin, end.filter(|t| t.year() < 10_000)) else {
            return Err(Fault::Input("the certificate would end after the year 9999".into()));
        };
        params.not_before = begin;
        params.not_after = end;
        params.is_ca = self.is_ca;
        params.key_usages = self.usages.iter().filter_map(|u| key_usage(u)).collect();
        params.extended_key_usages = self.usages.iter().filter_map(|u| extended_key_usage(u)).collect();
        Ok(())
    }
}

impl Profile {
    fn checked(self) -> Result<Policy, String> {
        for (name, set) in [
            ("ocsp_url", !self.ocsp_url.is_empty()),
            ("crl_url", !self.crl_url.is_empty()),
            ("issuer_urls", !self.issuer_urls.is_empty()),
            ("remote", !self.remote.is_empty()),
            ("auth_key", !self.auth_key.is_empty()),
            ("not_before", !self.not_before.is_empty()),
            ("not_after", !self.not_after.is_empty()),
        ] {
            if set {
                return Err(format!("{name} is not supported"));
            }
        }
        if self.usages.is_empty() {
            return Err("it has no usages".into());
        }
        if let Some(u) =
            self.usages.iter().find(|u| key_usage(u).is_none() && extended_key_usage(u).is_none())
        {
            return Err(format!("there is no usage {u:?}"));
        }
        let c = &self.ca_constraint;
        Ok(Policy {
            expiry: duration("expiry", &self.expiry)?,
            backdate: if self.backdate.is_empty() { BACKDATE } else { duration("backdate", &self.backdate)? },
            is_ca: if !c.is_ca {
                IsCa::ExplicitNoCa
            } else {
                constraint((c.max_path_len > 0 || c.max_path_len_zero).then_some(c.max_path_len))
            },
            usages: self.usages,
        })
    }
}

fn constraint(path: Option<u8>) -> IsCa {
    IsCa::Ca(path.map_or(BasicConstraints::Unconstrained, BasicConstraints::Constrained))
}

fn duration(name: &str, text: &str) -> Result<Duration, String> {
    let nanos = parse_duration(text).map_err(|e| format!("{name}: {e}"))?;
    match u64::try_from(nanos) {
        Ok(n) if n > 0 || name != "expiry" => Ok(Duration::from_nanos(n)),
        _ => Err(format!("{name} is {text:?}; it has to be positive")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(text: &str, profile: &str) -> String {
        Policy::from_config(text, "ca-config.json", profile).unwrap_err().to_string()
    }

    #[test]
    fn profiles_and_their_faults() {
        let p = Policy::from_config(DEFAULT, "f", "kubernetes").unwrap();
        assert_eq!(p.expiry, Duration::from_secs(87_600 * 3600));
        assert_eq!(
            fault(DEFAULT, "nope"),
            "ca-config.json: there is no profile \"nope\", and signing.default has no usages"
        );
        let with_default = r#"{"signing": {"default": {"expiry": "1h", "usages": ["server auth"]}}}"#;
        assert_eq!(Policy::from_config(with_default, "f", "nope").unwrap().expiry, Duration::from_secs(3600));
        for (profile, text) in [
            (r#"{"expiry": "xx", "usages": ["signing"]}"#, "invalid duration \"xx\""),
            (r#"{"expiry": "-1h", "usages": ["signing"]}"#, "has to be positive"),
            (r#"{"usages": ["signing"]}"#, "expiry"),
            (r#"{"expiry": "1h"}"#, "no usages"),
            (r#"{"expiry": "1h", "usages": ["sining"]}"#, "\"sining\""),
            (r#"{"expiry": "1h", "usages": ["signing"], "ocsp_url": "http://x"}"#, "ocsp_url"),
        ] {
            let e = fault(&format!(r#"{{"signing": {{"profiles": {{"p": {profile}}}}}}}"#), "p");
            assert!(e.contains(text) && e.contains("ca-config.json: profile \"p\""), "{e}");
        }
        assert!(fault("{", "p").starts_with("ca-config.json: "));
    }

    #[test]
    fn times_are_whole_minutes() {
        let mut params = CertificateParams::default();
        let now = OffsetDateTime::from_unix_timestamp(1_600_000_030).unwrap();
        Policy::standard().apply(&mut params, now).unwrap();
        assert_eq!(params.not_before.unix_timestamp(), 1_600_000_020 - 300);
        assert_eq!((params.not_after - params.not_before).whole_hours(), 8760);
    }
}
