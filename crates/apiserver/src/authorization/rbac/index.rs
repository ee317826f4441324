//! From a subject to what is bound to it.

use std::collections::HashMap;
use std::sync::Arc;

use pilothouse_apimachinery::json::Value;

use super::rules::Rule;
use crate::json::{list_at, str_at};
use crate::request::UserInfo;

/// A role's rules, with the object they were read from: the same object need not be read again.
#[derive(Debug, Clone)]
struct Role {
    object: Arc<Value>,
    rules: Arc<[Rule]>,
}

/// One subject of one binding.
#[derive(Debug, Clone)]
pub struct Bound {
    binding: Arc<Value>,
    /// Index into the binding's subjects.
    subject: usize,
    /// Namespace of the role, `""` for a ClusterRole.
    role_namespace: String,
    role: String,
}

/// Who is bound: a user by name, or a group.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Subject {
    User(String),
    Group(String),
}

type BySubject = HashMap<Subject, Vec<Bound>>;

/// The index.
#[derive(Debug, Default)]
pub struct Index {
    /// By namespace (`""` for ClusterRoles) and name.
    roles: HashMap<String, HashMap<String, Role>>,
    cluster: BySubject,
    namespaces: HashMap<String, BySubject>,
}

impl Bound {
    /// `RoleBinding "rb/ns" of Role "r" to User "u"`.
    pub fn describe(&self) -> String {
        let b = &*self.binding;
        let (name, namespace) = (str_at(b, &["metadata", "name"]), str_at(b, &["metadata", "namespace"]));
        let subject = &list_at(b, &["subjects"])[self.subject];
        let to = match str_at(subject, &["kind"]) {
            "ServiceAccount" => {
                let ns = Some(str_at(subject, &["namespace"])).filter(|n| !n.is_empty()).unwrap_or(namespace);
                format!("ServiceAccount \"{}/{ns}\"", str_at(subject, &["name"]))
            }
            kind => format!("{kind} {:?}", str_at(subject, &["name"])),
        };
        let (kind, role) = (str_at(b, &["roleRef", "kind"]), &self.role);
        if namespace.is_empty() {
            format!("ClusterRoleBinding {name:?} of {kind} {role:?} to {to}")
        } else {
            format!("RoleBinding \"{name}/{namespace}\" of {kind} {role:?} to {to}")
        }
    }

    /// The text of an error about a role that is not there.
    pub fn no_role(&self) -> String {
        let kind = if self.role_namespace.is_empty() { "clusterrole" } else { "role" };
        format!("{kind}.rbac.authorization.k8s.io {:?} not found", self.role)
    }
}

impl Index {
    /// Fills an empty index. Rules are taken from `old` for roles that have not changed since.
    pub fn fill(
        &mut self,
        old: &Index,
        cluster_roles: Vec<Arc<Value>>,
        roles: Vec<Arc<Value>>,
        cluster_bindings: Vec<Arc<Value>>,
        bindings: Vec<Arc<Value>>,
    ) {
        for object in cluster_roles.into_iter().chain(roles) {
            let (namespace, name) =
                (str_at(&object, &["metadata", "namespace"]), str_at(&object, &["metadata", "name"]));
            let known = old.role(namespace, name).filter(|r| Arc::ptr_eq(&r.object, &object));
            let rules = known.map_or_else(|| Rule::of_role(&object).into(), |r| r.rules.clone());
            let (namespace, name) = (namespace.to_string(), name.to_string());
            self.roles.entry(namespace).or_default().insert(name, Role { object, rules });
        }
        for b in cluster_bindings {
            add(&mut self.cluster, b);
        }
        for b in bindings {
            add(self.namespaces.entry(str_at(&b, &["metadata", "namespace"]).to_string()).or_default(), b);
        }
    }

    fn role(&self, namespace: &str, name: &str) -> Option<&Role> {
        self.roles.get(namespace)?.get(name)
    }

    /// The rules of a role: a ClusterRole's where `namespace` is empty.
    pub fn role_rules(&self, namespace: &str, name: &str) -> Option<&Arc<[Rule]>> {
        self.role(namespace, name).map(|r| &r.rules)
    }

    /// The rules that a binding gives; `None` where its role does not exist.
    pub fn rules(&self, bound: &Bound) -> Option<&Arc<[Rule]>> {
        self.role_rules(&bound.role_namespace, &bound.role)
    }

    /// What is bound to a user in the whole cluster and in a namespace (`""` for none).
    pub fn bound<'a>(&'a self, user: &UserInfo, namespace: &str) -> impl Iterator<Item = &'a Bound> {
        let mut keys = vec![Subject::User(user.name.clone())];
        keys.extend(user.groups.iter().cloned().map(Subject::Group));
        let local = self.namespaces.get(namespace).filter(|_| !namespace.is_empty());
        let maps = [Some(&self.cluster), local];
        maps.into_iter()
            .flatten()
            .flat_map(move |map| keys.iter().filter_map(|k| map.get(k)).flatten().collect::<Vec<_>>())
    }
}

fn add(map: &mut BySubject, binding: Arc<Value>) {
    let namespace = str_at(&binding, &["metadata", "namespace"]).to_string();
    let role = str_at(&binding, &["roleRef", "name"]).to_string();
    let role_namespace =
        if str_at(&binding, &["roleRef", "kind"]) == "Role" { namespace.clone() } else { String::new() };
    for (i, subject) in list_at(&binding, &["subjects"]).iter().enumerate() {
        let name = str_at(subject, &["name"]);
        let key = match str_at(subject, &["kind"]) {
            "User" => Subject::User(name.to_string()),
            "Group" => Subject::Group(name.to_string()),
            "ServiceAccount" => {
                let ns =
                    Some(str_at(subject, &["namespace"])).filter(|n| !n.is_empty()).unwrap_or(&namespace);
                if ns.is_empty() {
                    continue;
                }
                Subject::User(format!("system:serviceaccount:{ns}:{name}"))
            }
            _ => continue,
        };
        map.entry(key).or_default().push(Bound {
            binding: binding.clone(),
            subject: i,
            role_namespace: role_namespace.clone(),
            role: role.clone(),
        });
    }
}
