//! Who is asked a second time: where a webhook or policy changes the object all plug-ins run again, and of webhooks and
//! policies those with `reinvocationPolicy: IfNeeded` whose outcome may be another
//! (<https://kubernetes.io/docs/reference/access-authn-authz/extensible-admission-controllers/#reinvocation-policy>).

use std::collections::{HashMap, HashSet};

use pilothouse_apimachinery::json::Value;

/// What is to be asked again of one request. Webhooks and policies each have their own record, under their plug-in's name.
#[derive(Debug, Clone, Default)]
pub struct Reinvocation {
    wanted: bool,
    second: bool,
    plugins: HashMap<&'static str, Record>,
}

#[derive(Debug, Clone, Default)]
struct Record {
    /// Those asked since the last change that want to see later ones.
    asked: HashSet<String>,
    /// Those that something was changed after.
    due: HashSet<String>,
    /// The object when all had been asked.
    left: Value,
}

impl Reinvocation {
    /// Whether all plug-ins have to run again; then the second round begins.
    pub fn begin_second(&mut self) -> bool {
        self.second = self.wanted;
        self.second
    }

    /// A plug-in begins to ask its webhooks or policies about `object`.
    pub fn begin(&mut self, plugin: &'static str, object: &Value) {
        if let Some(record) = self.plugins.get_mut(plugin).filter(|r| self.second && r.left != *object) {
            record.due.extend(record.asked.drain());
        }
    }

    /// Whether one of them, known by `id`, is left out: in the second round only those that are due are asked.
    pub fn skips(&self, plugin: &'static str, id: &str) -> bool {
        self.second && !self.plugins.get(plugin).is_some_and(|r| r.due.contains(id))
    }

    /// One has been asked: whether it changed the object, and whether it wants to see later changes.
    pub fn asked(&mut self, plugin: &'static str, id: &str, changed: bool, if_needed: bool) {
        let record = self.plugins.entry(plugin).or_default();
        if changed {
            record.due.extend(record.asked.drain());
            self.wanted = true;
        }
        if if_needed {
            record.asked.insert(id.to_string());
        }
    }

    /// The plug-in has asked all of them.
    pub fn end(&mut self, plugin: &'static str, object: &Value) {
        if let Some(record) = self.plugins.get_mut(plugin).filter(|_| !self.second) {
            record.left = object.clone();
        }
    }
}

#[cfg(test)]
mod tests {
    use pilothouse_apimachinery::json::json;

    use super::*;

    const PLUGIN: &str = "MutatingAdmissionWebhook";

    #[test]
    fn those_before_a_change_are_due() {
        let mut r = Reinvocation::default();
        r.begin(PLUGIN, &json!(1));
        assert!(!r.skips(PLUGIN, "a"));
        r.asked(PLUGIN, "a", true, true);
        r.asked(PLUGIN, "never", false, false);
        r.asked(PLUGIN, "b", true, true);
        r.end(PLUGIN, &json!(2));
        assert!(r.begin_second());
        // Nobody changed it since: "b" has seen what there is.
        r.begin(PLUGIN, &json!(2));
        assert!(!r.skips(PLUGIN, "a") && r.skips(PLUGIN, "never") && r.skips(PLUGIN, "b"));
    }

    #[test]
    fn all_are_due_when_others_change_it_in_the_second_round() {
        let mut r = Reinvocation::default();
        r.asked(PLUGIN, "a", true, true);
        r.asked(PLUGIN, "never", false, false);
        r.end(PLUGIN, &json!(2));
        assert!(r.begin_second());
        r.begin(PLUGIN, &json!(3));
        assert!(!r.skips(PLUGIN, "a") && r.skips(PLUGIN, "never"));
    }

    #[test]
    fn without_a_change_there_is_no_second_round() {
        let mut r = Reinvocation::default();
        r.asked(PLUGIN, "a", false, true);
        assert!(!r.begin_second());
    }
}
