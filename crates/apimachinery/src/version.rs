//! The version that components say they are: Kubernetes' own scheme, as clients parse it.

use serde::Serialize;

/// What `/version` answers. Field names are those of `k8s.io/apimachinery/pkg/version.Info`.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Info {
    /// Major number, text.
    pub major: String,
    /// Minor number, text.
    pub minor: String,
    /// `v1.20.2` and the like.
    pub git_version: String,
    /// Commit, 40 digits.
    pub git_commit: String,
    /// `clean` or `dirty`.
    pub git_tree_state: String,
    /// RFC 3339.
    pub build_date: String,
    /// Language version; clients only show it.
    pub go_version: String,
    /// Compiler; clients only show it.
    pub compiler: String,
    /// `linux/amd64` and the like.
    pub platform: String,
}

/// A Kubernetes release, such as 1.20.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Release {
    /// Always 1 so far.
    pub major: u32,
    /// 20, 36, …
    pub minor: u32,
}

/// The newest release in the catalogue.
pub const NEWEST: Release = Release { major: 1, minor: 36 };

impl Release {
    /// The release of the recorded exchanges.
    pub const V1_20: Release = Release { major: 1, minor: 20 };

    /// Parses `1.20` or `v1.20`.
    pub fn parse(s: &str) -> Option<Release> {
        let (major, minor) = s.strip_prefix('v').unwrap_or(s).split_once('.')?;
        Some(Release { major: major.parse().ok()?, minor: minor.parse().ok()? })
    }

    /// What `--emulated-version` names; the newest where it is empty.
    pub fn from_flag(s: &str) -> Result<Release, String> {
        if s.is_empty() {
            return Ok(NEWEST);
        }
        Release::parse(s).filter(|r| *r == Release::V1_20 || *r == NEWEST).ok_or_else(|| {
            format!("--emulated-version={s}: known are 1.20 and {}.{}", NEWEST.major, NEWEST.minor)
        })
    }

    /// `v1.20.2`: the patch release is that of the recordings for 1.20, else 0.
    pub fn git_version(self) -> String {
        let patch = if self == Release::V1_20 { 2 } else { 0 };
        format!("v{}.{}.{}", self.major, self.minor, patch)
    }

    /// What `/version` answers for it.
    pub fn info(self) -> Info {
        Info {
            major: self.major.to_string(),
            minor: self.minor.to_string(),
            git_version: self.git_version(),
            git_commit: "0".repeat(40),
            git_tree_state: "clean".into(),
            build_date: "1970-01-01T00:00:00Z".into(),
            go_version: "go1.15.5".into(),
            compiler: "rustc".into(),
            platform: format!(
                "linux/{}",
                match std::env::consts::ARCH {
                    "x86_64" => "amd64",
                    "aarch64" => "arm64",
                    a => a,
                }
            ),
        }
    }
}

/// Kubernetes' order of API versions, best last: `foo1` < `v1alpha1` < `v1beta1` < `v1beta2` < `v1` < `v2`.
pub fn compare_kube_aware(a: &str, b: &str) -> std::cmp::Ordering {
    match (parts(a), parts(b)) {
        (Some(x), Some(y)) => x.cmp(&y),
        (Some(_), None) => std::cmp::Ordering::Greater,
        (None, Some(_)) => std::cmp::Ordering::Less,
        // What is no version of ours is sorted by name, the first best.
        (None, None) => b.cmp(a),
    }
}

/// Stability (alpha, beta, stable), major and minor number.
fn parts(version: &str) -> Option<(u8, u64, u64)> {
    let rest = version.strip_prefix('v')?;
    let number = |s: &str| s.parse::<u64>().ok().filter(|_| !s.starts_with(['0', '+']));
    for (word, stability) in [("alpha", 0), ("beta", 1)] {
        if let Some((major, minor)) = rest.split_once(word) {
            return Some((stability, number(major)?, number(minor)?));
        }
    }
    Some((2, number(rest)?, 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_of_api_versions() {
        let mut versions = ["v2", "foo10", "v1alpha1", "v10", "v1beta2", "foo1", "v3beta1", "v1"];
        versions.sort_by(|a, b| compare_kube_aware(b, a));
        assert_eq!(versions, ["v10", "v2", "v1", "v3beta1", "v1beta2", "v1alpha1", "foo1", "foo10"]);
    }

    #[test]
    fn releases() {
        assert_eq!(Release::from_flag("1.20"), Ok(Release::V1_20));
        assert_eq!(Release::from_flag(""), Ok(NEWEST));
        assert!(Release::from_flag("1.19").is_err());
    }
}
