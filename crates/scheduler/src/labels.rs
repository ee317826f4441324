//! Selectors of labels and of nodes, compiled once per pod.

use pilothouse_apimachinery::json::to_value;
use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{NodeSelector, NodeSelectorTerm};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use pilothouse_apimachinery::selector::{Operator, Requirement, Selector};

/// Labels of an object.
pub type Labels = BTreeMap<String, String>;

/// Compiles a label selector: none selects nothing, an empty one everything, a malformed one nothing.
pub fn selector(selector: Option<&LabelSelector>) -> Selector {
    selector
        .and_then(|s| to_value(s).ok())
        .and_then(|v| Selector::from_label_selector(&v).ok())
        .unwrap_or_else(Selector::nothing)
}

/// Whether a selector selects these labels.
pub fn matches(selector: &Selector, labels: &Labels) -> bool {
    selector.matches_with(|key| labels.get(key).map(String::as_str))
}

/// One term of a node selector: all its conditions must hold.
#[derive(Debug, Clone)]
pub struct NodeTerm {
    labels: Vec<Requirement>,
    /// Conditions on `metadata.name`: whether the name must be this one, or must not.
    names: Vec<(bool, String)>,
}

impl NodeTerm {
    /// Compiles a term; `None` for one that selects nothing, because it is empty or malformed.
    pub fn new(term: &NodeSelectorTerm) -> Option<NodeTerm> {
        let expressions = term.match_expressions.as_deref().unwrap_or_default();
        let fields = term.match_fields.as_deref().unwrap_or_default();
        if expressions.is_empty() && fields.is_empty() {
            return None;
        }
        let labels = expressions
            .iter()
            .map(|e| {
                let operator = match e.operator.as_str() {
                    "In" => Operator::In,
                    "NotIn" => Operator::NotIn,
                    "Exists" => Operator::Exists,
                    "DoesNotExist" => Operator::DoesNotExist,
                    "Gt" => Operator::GreaterThan,
                    "Lt" => Operator::LessThan,
                    _ => return None,
                };
                Requirement::new(&e.key, operator, e.values.clone().unwrap_or_default()).ok()
            })
            .collect::<Option<_>>()?;
        let names = fields
            .iter()
            .map(|f| match (f.key.as_str(), f.operator.as_str(), f.values.as_deref()) {
                ("metadata.name", "In", Some([name])) => Some((true, name.clone())),
                ("metadata.name", "NotIn", Some([name])) => Some((false, name.clone())),
                _ => None,
            })
            .collect::<Option<_>>()?;
        Some(NodeTerm { labels, names })
    }

    /// Whether the term selects a node.
    pub fn matches(&self, name: &str, labels: &Labels) -> bool {
        self.labels.iter().all(|r| r.matches(labels.get(r.key()).map(String::as_str)))
            && self.names.iter().all(|(is, n)| (n == name) == *is)
    }
}

/// Compiled terms of which one must hold.
#[derive(Debug, Clone)]
pub struct NodeTerms(Vec<NodeTerm>);

impl NodeTerms {
    /// Compiles a node selector.
    pub fn new(selector: &NodeSelector) -> NodeTerms {
        NodeTerms(selector.node_selector_terms.iter().filter_map(NodeTerm::new).collect())
    }

    /// Whether the selector selects a node.
    pub fn matches(&self, name: &str, labels: &Labels) -> bool {
        self.0.iter().any(|t| t.matches(name, labels))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn terms(value: serde_json::Value) -> NodeTerms {
        NodeTerms::new(&serde_json::from_value(json!({ "nodeSelectorTerms": value })).unwrap())
    }

    #[test]
    fn terms_are_alternatives_and_conditions_add_up() {
        let labels: Labels =
            [("zone", "a"), ("cpus", "8")].map(|(k, v)| (k.to_string(), v.to_string())).into();
        let expr =
            |key: &str, op: &str, values: &[&str]| json!({"key": key, "operator": op, "values": values});
        let one = |e: serde_json::Value| terms(json!([{"matchExpressions": [e]}])).matches("n1", &labels);
        assert!(one(expr("zone", "In", &["a", "b"])));
        assert!(!one(expr("zone", "NotIn", &["a"])));
        assert!(one(expr("gone", "NotIn", &["a"])));
        assert!(one(expr("cpus", "Gt", &["7"])) && !one(expr("cpus", "Lt", &["8"])));
        assert!(one(expr("zone", "Exists", &[])) && one(expr("gone", "DoesNotExist", &[])));
        assert!(!terms(json!([])).matches("n1", &labels));
        assert!(!terms(json!([{}])).matches("n1", &labels));
        let both = json!([{"matchExpressions": [expr("zone", "In", &["a"]), expr("zone", "In", &["b"])]}]);
        assert!(!terms(both).matches("n1", &labels));
        let either = json!([{"matchExpressions": [expr("zone", "In", &["b"])]}, {"matchFields": [expr("metadata.name", "In", &["n1"])]}]);
        assert!(terms(either.clone()).matches("n1", &labels) && !terms(either).matches("n2", &labels));
    }
}
