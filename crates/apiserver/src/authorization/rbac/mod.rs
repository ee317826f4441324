//! Role-based access control.
//!
//! Who may do what is looked up in an index from subject to the bindings that name it, so a request costs what the
//! asking user's own bindings cost, however many others there are. The index is made anew when a role or binding has
//! changed, out of the parts that have not.

pub mod escalation;
pub mod index;
pub mod policy;
pub mod rules;

use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, RwLock};

use self::index::Index;
use self::rules::Rule;
use crate::request::{Attributes, Decision, Objects, UserInfo};

/// The API group.
pub const GROUP: &str = "rbac.authorization.k8s.io";

/// The resources that the index is made of.
const RESOURCES: [&str; 4] = ["clusterroles", "clusterrolebindings", "roles", "rolebindings"];

/// How long a refusal may wait for the watch cache.
const PATIENCE: Duration = Duration::from_secs(1);

/// The RBAC authorizer.
pub struct Rbac {
    objects: Arc<dyn Objects>,
    index: RwLock<([u64; 4], Arc<Index>)>,
    /// Held while the index is made: one request does it, the others wait for it.
    making: Mutex<()>,
}

impl Rbac {
    /// An authorizer over the stored roles and bindings.
    pub fn new(objects: Arc<dyn Objects>) -> Rbac {
        Rbac { objects, index: RwLock::new(([u64::MAX; 4], Arc::default())), making: Mutex::default() }
    }

    /// The index, up to date with the watch cache.
    pub fn index(&self) -> Arc<Index> {
        self.index_at().1
    }

    /// The index with the revisions that it has at least.
    fn index_at(&self) -> ([u64; 4], Arc<Index>) {
        let fresh = || {
            let revisions = self.revisions();
            let current = self.index.read();
            if current.0 == revisions {
                Ok((revisions, current.1.clone()))
            } else {
                Err((revisions, current.1.clone()))
            }
        };
        if let Ok(index) = fresh() {
            return index;
        }
        let _making = self.making.lock();
        let (revisions, old) = match fresh() {
            Ok(index) => return index,
            Err(stale) => stale,
        };
        let mut made = Index::default();
        let list = |r: &str| self.objects.list(GROUP, r, "");
        made.fill(
            &old,
            list("clusterroles"),
            list("roles"),
            list("clusterrolebindings"),
            list("rolebindings"),
        );
        let made = Arc::new(made);
        // Revisions were read before the lists, so an index can be newer than it says, never older.
        *self.index.write() = (revisions, made.clone());
        (revisions, made)
    }

    /// Decides.
    pub fn authorize(&self, attributes: Attributes<'_>) -> Decision {
        decide(&self.index(), attributes)
    }

    /// Decides; refuses only by what is known once all earlier writes are: who has just got a role may use it.
    pub async fn authorize_latest(&self, attributes: Attributes<'_>) -> Decision {
        let (seen, index) = self.index_at();
        match decide(&index, attributes) {
            Decision::Allow => Decision::Allow,
            refused => self.reconsider(seen, refused, attributes).await,
        }
    }

    /// A refusal by an index of certain revisions, reconsidered if there are others once the cache has caught up.
    async fn reconsider(&self, seen: [u64; 4], refused: Decision, attributes: Attributes<'_>) -> Decision {
        match tokio::time::timeout(PATIENCE, self.objects.catch_up()).await {
            Ok(Ok(())) if self.revisions() != seen => self.authorize(attributes),
            _ => refused,
        }
    }

    fn revisions(&self) -> [u64; 4] {
        RESOURCES.map(|r| self.objects.revision(GROUP, r))
    }

    /// All rules of a user: those of the whole cluster and those of a namespace (`""` for none).
    pub fn rules_of(&self, user: &UserInfo, namespace: &str) -> Vec<Rule> {
        let index = self.index();
        index.bound(user, namespace).filter_map(|b| index.rules(b)).flat_map(|r| r.iter().cloned()).collect()
    }
}

/// Decides by an index.
pub fn decide(index: &Index, attributes: Attributes<'_>) -> Decision {
    let mut broken: Vec<String> = Vec::new();
    for bound in index.bound(attributes.user, &attributes.request.namespace) {
        match index.rules(bound) {
            Some(rules) if rules.iter().any(|r| r.allows(attributes.request)) => return Decision::Allow,
            Some(_) => {}
            None => {
                let text = bound.no_role();
                if !broken.contains(&text) {
                    broken.push(text);
                }
            }
        }
    }
    Decision::NoOpinion(match broken.as_slice() {
        [] => String::new(),
        [one] => format!("RBAC: {one}"),
        many => format!("RBAC: [{}]", many.join(", ")),
    })
}

/// Why a request is allowed, as access reviews say it: `RBAC: allowed by RoleBinding "rb/ns" of Role "r" to User "u"`.
pub fn explain(index: &Index, attributes: Attributes<'_>) -> Option<String> {
    index
        .bound(attributes.user, &attributes.request.namespace)
        .find(|b| index.rules(b).is_some_and(|r| r.iter().any(|r| r.allows(attributes.request))))
        .map(|b| format!("RBAC: allowed by {}", b.describe()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::RequestInfo;
    use crate::testing::FakeObjects;
    use pilothouse_apimachinery::json::{Value, json};

    fn user(name: &str, groups: &[&str]) -> UserInfo {
        UserInfo {
            name: name.into(),
            groups: groups.iter().map(|g| g.to_string()).collect(),
            ..Default::default()
        }
    }

    fn get(resource: &str, namespace: &str) -> RequestInfo {
        RequestInfo {
            is_resource: true,
            verb: "get".into(),
            resource: resource.into(),
            namespace: namespace.into(),
            name: "x".into(),
            ..Default::default()
        }
    }

    fn bind(name: &str, kind: &str, role: &str, subject: Value) -> Value {
        json!({"metadata": {"name": name}, "roleRef": {"apiGroup": GROUP, "kind": kind, "name": role}, "subjects": [subject]})
    }

    fn world() -> (Arc<FakeObjects>, Rbac) {
        let o = Arc::new(FakeObjects::default());
        let rules = json!([{"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}]);
        o.put(GROUP, "clusterroles", json!({"metadata": {"name": "reader"}, "rules": rules}));
        o.put(GROUP, "roles", json!({"metadata": {"name": "r", "namespace": "a"}, "rules": rules}));
        let rbac = Rbac::new(o.clone());
        (o, rbac)
    }

    fn ask(rbac: &Rbac, user: &UserInfo, request: &RequestInfo) -> Decision {
        rbac.authorize(Attributes { user, request })
    }

    #[test]
    fn bindings_count_where_they_are() {
        let (o, rbac) = world();
        let jane = user("jane", &["system:authenticated"]);
        assert_eq!(ask(&rbac, &jane, &get("pods", "a")), Decision::NoOpinion(String::new()));
        let mut b = bind("rb", "Role", "r", json!({"kind": "User", "apiGroup": GROUP, "name": "jane"}));
        b["metadata"]["namespace"] = json!("a");
        o.put(GROUP, "rolebindings", b);
        assert_eq!(ask(&rbac, &jane, &get("pods", "a")), Decision::Allow);
        assert_eq!(ask(&rbac, &jane, &get("pods", "b")), Decision::NoOpinion(String::new()));
        assert_eq!(ask(&rbac, &jane, &get("pods", "")), Decision::NoOpinion(String::new()));
        let (index, request) = (rbac.index(), get("pods", "a"));
        assert_eq!(
            explain(&index, Attributes { user: &jane, request: &request }).unwrap(),
            r#"RBAC: allowed by RoleBinding "rb/a" of Role "r" to User "jane""#
        );
        o.remove(GROUP, "rolebindings", "a", "rb");
        assert_eq!(ask(&rbac, &jane, &get("pods", "a")), Decision::NoOpinion(String::new()));
    }

    /// Also where it arrives between the decision and the question for what is newest.
    #[tokio::test]
    async fn a_refusal_is_reconsidered_by_what_has_arrived_since() {
        let (o, rbac) = world();
        let (jane, request) = (user("jane", &[]), get("pods", ""));
        let attributes = Attributes { user: &jane, request: &request };
        let (seen, index) = rbac.index_at();
        let refused = decide(&index, attributes);
        assert_eq!(rbac.reconsider(seen, refused.clone(), attributes).await, refused);
        let subject = json!({"kind": "User", "name": "jane"});
        o.put(GROUP, "clusterrolebindings", bind("b", "ClusterRole", "reader", subject));
        assert_eq!(rbac.reconsider(seen, refused, attributes).await, Decision::Allow);
    }

    #[test]
    fn groups_and_service_accounts() {
        let (o, rbac) = world();
        o.put(
            GROUP,
            "clusterrolebindings",
            bind("g", "ClusterRole", "reader", json!({"kind": "Group", "name": "devs"})),
        );
        o.put(
            GROUP,
            "clusterrolebindings",
            bind(
                "s",
                "ClusterRole",
                "reader",
                json!({"kind": "ServiceAccount", "name": "bot", "namespace": "a"}),
            ),
        );
        assert_eq!(ask(&rbac, &user("x", &["devs"]), &get("pods", "z")), Decision::Allow);
        assert_eq!(ask(&rbac, &user("system:serviceaccount:a:bot", &[]), &get("pods", "")), Decision::Allow);
        assert_ne!(ask(&rbac, &user("system:serviceaccount:b:bot", &[]), &get("pods", "")), Decision::Allow);
        assert_ne!(ask(&rbac, &user("devs", &[]), &get("pods", "")), Decision::Allow);
    }

    #[test]
    fn a_missing_role_is_told() {
        let (o, rbac) = world();
        o.put(
            GROUP,
            "clusterrolebindings",
            bind("g", "ClusterRole", "gone", json!({"kind": "User", "name": "u"})),
        );
        assert_eq!(
            ask(&rbac, &user("u", &[]), &get("pods", "")),
            Decision::NoOpinion(r#"RBAC: clusterrole.rbac.authorization.k8s.io "gone" not found"#.into())
        );
        // And it counts as soon as it is there.
        let rules = json!([{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}]);
        o.put(GROUP, "clusterroles", json!({"metadata": {"name": "gone"}, "rules": rules}));
        assert_eq!(ask(&rbac, &user("u", &[]), &get("pods", "")), Decision::Allow);
    }
}
