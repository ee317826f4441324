//! `/healthz`, `/livez`, `/readyz` with their named checks.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http::StatusCode;
use parking_lot::RwLock;
use pilothouse_store::Store;

/// Something that has to have happened, or to be so, for the server to be healthy.
#[derive(Debug, Clone, Default)]
pub struct Flag(Arc<AtomicBool>);

impl Flag {
    /// It is so from now on.
    pub fn set(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// Whether it is so.
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// The checks of the server, in the order in which Kubernetes lists them.
pub struct Health {
    store: Arc<dyn Store>,
    store_limit: Duration,
    hooks: RwLock<Vec<(&'static str, Flag)>>,
    /// Informers: the watch cache is filled.
    pub synced: Flag,
    /// The server is stopping.
    pub stopping: Flag,
}

/// One of the three groups of checks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Group {
    /// `/healthz`.
    Healthz,
    /// `/livez`.
    Livez,
    /// `/readyz`.
    Readyz,
}

impl Group {
    /// Its path, without the slash.
    pub fn name(self) -> &'static str {
        match self {
            Group::Healthz => "healthz",
            Group::Livez => "livez",
            Group::Readyz => "readyz",
        }
    }

    /// The group of a path, with the name of the check that comes behind it.
    pub fn of(path: &str) -> Option<(Group, &str)> {
        [Group::Healthz, Group::Livez, Group::Readyz].into_iter().find_map(|g| {
            let rest = path.strip_prefix('/')?.strip_prefix(g.name())?;
            let check = if rest.is_empty() { "" } else { rest.strip_prefix('/')? };
            Some((g, check.trim_end_matches('/')))
        })
    }
}

/// The post-start hooks of v1.20's API server, in its order.
pub const HOOKS: &[&str] = &[
    "start-kube-apiserver-admission-initializer",
    "generic-apiserver-start-informers",
    "priority-and-fairness-config-consumer",
    "priority-and-fairness-filter",
    "start-apiextensions-informers",
    "start-apiextensions-controllers",
    "crd-informer-synced",
    "bootstrap-controller",
    "rbac/bootstrap-roles",
    "scheduling/bootstrap-system-priority-classes",
    "priority-and-fairness-config-producer",
    "start-cluster-authentication-info-controller",
    "aggregator-reload-proxy-client-cert",
    "start-kube-aggregator-informers",
    "apiservice-registration-controller",
    "apiservice-status-available-controller",
    "kube-apiserver-autoregistration",
    "autoregister-completion",
    "apiservice-openapi-controller",
];

impl Health {
    /// Checks of a server with this store.
    pub fn new(store: Arc<dyn Store>, store_limit: Duration) -> Health {
        let hooks = HOOKS.iter().map(|name| (*name, Flag::default())).collect();
        Health {
            store,
            store_limit,
            hooks: RwLock::new(hooks),
            synced: Flag::default(),
            stopping: Flag::default(),
        }
    }

    /// The post-start hook of a name has run.
    pub fn hook_done(&self, name: &str) {
        if let Some((_, flag)) = self.hooks.read().iter().find(|(n, _)| *n == name) {
            flag.set();
        }
    }

    /// All post-start hooks but those named have run.
    pub fn hooks_done_except(&self, names: &[&str]) {
        for (name, flag) in self.hooks.read().iter() {
            if !names.contains(name) {
                flag.set();
            }
        }
    }

    /// The names of a group's checks.
    pub fn names(&self, group: Group) -> Vec<String> {
        let mut names = vec!["ping".to_string(), "log".into(), "etcd".into()];
        if group == Group::Readyz {
            names.push("informer-sync".into());
        }
        names.extend(self.hooks.read().iter().map(|(n, _)| format!("poststarthook/{n}")));
        if group == Group::Readyz {
            names.push("shutdown".into());
        }
        names
    }

    async fn check(&self, name: &str) -> bool {
        match name {
            "ping" | "log" => true,
            "etcd" => {
                let health = tokio::time::timeout(self.store_limit, self.store.health()).await;
                // One endpoint that answers is enough: the others are its cluster's business.
                health.is_ok_and(|all| all.iter().any(|(_, r)| r.is_ok()))
            }
            "informer-sync" => self.synced.is_set(),
            "shutdown" => !self.stopping.is_set(),
            hook => {
                let name = hook.strip_prefix("poststarthook/").unwrap_or(hook);
                self.hooks.read().iter().any(|(n, flag)| *n == name && flag.is_set())
            }
        }
    }

    /// The answer for one check. `None` where there is no such check in the group.
    pub async fn answer_one(&self, group: Group, check: &str) -> Option<(StatusCode, String)> {
        if !self.names(group).iter().any(|n| n == check) {
            return None;
        }
        Some(if self.check(check).await {
            (StatusCode::OK, "ok".into())
        } else {
            (StatusCode::INTERNAL_SERVER_ERROR, "internal server error: reason withheld\n".into())
        })
    }

    /// The answer for a group, without the checks in `exclude`.
    pub async fn answer(&self, group: Group, verbose: bool, exclude: &[&str]) -> (StatusCode, String) {
        let names = self.names(group);
        let mut lines = String::new();
        let mut failed = false;
        for name in &names {
            if exclude.contains(&name.as_str()) {
                lines.push_str(&format!("[+]{name} excluded: ok\n"));
            } else if self.check(name).await {
                lines.push_str(&format!("[+]{name} ok\n"));
            } else {
                failed = true;
                lines.push_str(&format!("[-]{name} failed: reason withheld\n"));
            }
        }
        let unknown: Vec<String> =
            exclude.iter().filter(|e| !names.iter().any(|n| n == *e)).map(|e| format!("{e:?}")).collect();
        if !unknown.is_empty() {
            lines.push_str(&format!(
                "warn: some health checks cannot be excluded: no matches for {}\n",
                unknown.join(",")
            ));
        }
        if failed {
            (StatusCode::INTERNAL_SERVER_ERROR, format!("{lines}{} check failed\n", group.name()))
        } else if verbose {
            (StatusCode::OK, format!("{lines}{} check passed\n", group.name()))
        } else {
            (StatusCode::OK, "ok".into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::test_store::MemoryStore;

    #[tokio::test]
    async fn ready_when_everything_has_started() {
        let h = Health::new(Arc::new(MemoryStore::default()), Duration::from_secs(2));
        assert_eq!(h.answer(Group::Readyz, false, &[]).await.0, 500);
        h.hooks_done_except(&["rbac/bootstrap-roles"]);
        h.synced.set();
        let (code, text) = h.answer(Group::Readyz, false, &[]).await;
        assert_eq!(code, 500);
        assert!(text.contains("[-]poststarthook/rbac/bootstrap-roles failed: reason withheld\n"));
        assert!(text.ends_with("readyz check failed\n"));
        assert_eq!(h.answer(Group::Readyz, false, &["poststarthook/rbac/bootstrap-roles"]).await.1, "ok");
        h.hook_done("rbac/bootstrap-roles");
        let (code, text) = h.answer(Group::Livez, true, &["nope"]).await;
        assert_eq!(code, 200);
        assert!(text.contains("[+]etcd ok\n") && text.contains("no matches for \"nope\""));
        h.stopping.set();
        assert_eq!(h.answer(Group::Readyz, false, &[]).await.0, 500);
        assert_eq!(h.answer(Group::Livez, false, &[]).await.0, 200);
        assert!(h.answer_one(Group::Livez, "shutdown").await.is_none());
        assert_eq!(h.answer_one(Group::Healthz, "etcd").await.unwrap().1, "ok");
    }

    #[test]
    fn paths() {
        assert_eq!(Group::of("/healthz"), Some((Group::Healthz, "")));
        assert_eq!(Group::of("/readyz/poststarthook/x"), Some((Group::Readyz, "poststarthook/x")));
        assert_eq!(Group::of("/readyzz"), None);
    }
}
