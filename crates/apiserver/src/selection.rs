//! Which objects a list, watch or collection's deletion is about.

use std::sync::Arc;

use pilothouse_apimachinery::field_selector::FieldSelector;
use pilothouse_apimachinery::selector::Selector;

use crate::cache::entry::Entry;
use crate::cache::resource::{ResourceCache, Snapshot};

/// Namespace, name and selectors of a request.
#[derive(Debug, Clone)]
pub struct Selection {
    /// Begin of the keys: `""` for all, `ns/` for a namespace, the whole key for one object.
    prefix: String,
    /// Whether `prefix` is a whole key.
    exact: bool,
    /// Labels.
    labels: Selector,
    /// Fields.
    fields: FieldSelector,
}

impl Selection {
    /// A selection. `namespace` is empty for all namespaces and cluster-wide resources; a field selector that pins
    /// the name makes it about one object.
    pub fn new(namespaced: bool, namespace: &str, labels: Selector, fields: FieldSelector) -> Selection {
        let name = fields.requires_exact_match("metadata.name").filter(|n| !n.is_empty());
        let (prefix, exact) = match (namespaced, namespace, name) {
            (false, _, Some(name)) => (name.to_string(), true),
            (false, _, None) | (true, "", _) => (String::new(), false),
            (true, ns, Some(name)) => (format!("{ns}/{name}"), true),
            (true, ns, None) => (format!("{ns}/"), false),
        };
        Selection { prefix, exact, labels, fields }
    }

    /// All objects of a namespace, or all objects.
    pub fn everything(namespaced: bool, namespace: &str) -> Selection {
        Selection::new(namespaced, namespace, Selector::everything(), FieldSelector::default())
    }

    /// Begin of the keys that it can be about; the whole key where it is about one object.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Whether [`Selection::prefix`] is a whole key.
    pub fn is_one(&self) -> bool {
        self.exact
    }

    /// Whether selectors take their choice beyond the prefix.
    pub fn has_selectors(&self) -> bool {
        !(self.labels.is_everything() && self.fields.is_everything())
    }

    /// Whether an object is meant.
    pub fn matches(&self, entry: &Entry) -> bool {
        let key = if self.exact { *entry.key == *self.prefix } else { entry.key.starts_with(&self.prefix) };
        key && (self.labels.is_everything() || self.labels.matches_with(|k| entry.label(k)))
            && (self.fields.is_everything() || self.fields.matches_with(|f| entry.field(f)))
    }

    /// The objects that are meant, in key order.
    pub fn list(&self, cache: &ResourceCache) -> Snapshot {
        if self.exact {
            let revision = cache.revision();
            let entries = cache.get(&self.prefix).into_iter().filter(|e| self.matches(e)).collect();
            return Snapshot { entries, revision };
        }
        let indexed = self
            .fields
            .terms
            .iter()
            .filter(|t| !t.not && !t.value.is_empty())
            .find_map(|t| cache.list_by_field(&t.field, &t.value));
        let mut found = indexed.unwrap_or_else(|| cache.list(&self.prefix));
        if self.has_selectors() || !self.prefix.is_empty() {
            found.entries.retain(|e| self.matches(e));
        }
        found
    }

    /// Those of `entries` that are meant.
    pub fn filter(&self, mut entries: Vec<Arc<Entry>>) -> Vec<Arc<Entry>> {
        entries.retain(|e| self.matches(e));
        entries
    }
}

#[cfg(test)]
mod tests {
    use pilothouse_apimachinery::json::json;

    use super::*;
    use crate::cache::entry::tests::Plain;
    use crate::cache::resource::Window;

    fn cache() -> ResourceCache {
        let c = ResourceCache::new(Arc::new(Plain), Window::default());
        let entries = [("a/one", "x", "n1"), ("a/two", "y", "n2"), ("b/one", "x", "n2")];
        let entries = entries.map(|(key, app, node)| {
            let name = key.split_once('/').unwrap().1;
            let o = json!({"metadata": {"name": name, "labels": {"app": app}}, "spec": {"nodeName": node}});
            Arc::new(Entry::new(&Plain, key, 2, Arc::new(o), None))
        });
        c.replace(entries.to_vec(), 5);
        c
    }

    fn found(namespace: &str, labels: &str, fields: &str) -> Vec<String> {
        let s = Selection::new(
            true,
            namespace,
            Selector::parse(labels).unwrap(),
            FieldSelector::parse(fields).unwrap(),
        );
        s.list(&cache()).entries.iter().map(|e| e.key.to_string()).collect()
    }

    #[test]
    fn selects() {
        assert_eq!(found("", "", ""), ["a/one", "a/two", "b/one"]);
        assert_eq!(found("a", "", ""), ["a/one", "a/two"]);
        assert_eq!(found("", "app=x", ""), ["a/one", "b/one"]);
        assert_eq!(found("b", "app=x", "spec.nodeName=n2"), ["b/one"]);
        assert_eq!(found("", "", "spec.nodeName=n2"), ["a/two", "b/one"]);
        assert_eq!(found("", "", "spec.nodeName!=n2"), ["a/one"]);
        assert_eq!(found("a", "", "metadata.name=one"), ["a/one"]);
        assert_eq!(found("", "", "metadata.name=one"), ["a/one", "b/one"]);
        assert_eq!(found("a", "app=y", "metadata.name=one"), [""; 0]);
        assert_eq!(found("", "", "metadata.namespace=b"), ["b/one"]);
    }
}
