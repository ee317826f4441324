//! Whether a schema is structural: it says of every place which type is there, and what only restricts values
//! (`allOf`, `anyOf`, `oneOf`, `not`) adds nothing to that.
//!
//! The schema is taken apart into nodes, each with its place, and every node is held against the rules of its place.

use pilothouse_apimachinery::field::{self, ErrorList, Path};
use pilothouse_apimachinery::json::{Value, bool_at, get, json, list_at, str_at};
use regex::Regex;

use super::structural::{is_set, map_at, wrong_type};
use crate::apply::path::equal;

/// Where a node stands.
#[derive(Clone)]
enum Place<'a> {
    /// The object itself.
    Root,
    /// The items of a list.
    Item,
    /// A field of an object, or any value of a map.
    Field,
    /// Where values are restricted.
    Restriction {
        /// What the structure says of the same values, and where it says so; none where nobody asks.
        structure: Option<(&'a Value, Path)>,
        /// Whether its `anyOf` may name types: integer and string.
        names_types: bool,
    },
}

struct Node<'a> {
    schema: &'a Value,
    path: Path,
    place: Place<'a>,
}

/// What keeps a schema from being structural, in the order of the texts.
pub fn violations(schema: &Value, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    let mut open = vec![Node { schema, path: path.clone(), place: Place::Root }];
    while let Some(node) = open.pop() {
        if node.schema.is_object() {
            node.faults(&mut errors);
            node.expand(&mut open);
        }
    }
    errors.sort_by_key(ToString::to_string);
    errors
}

/// The one `anyOf` in which types are allowed: integer or string.
fn is_int_or_string(schema: &Value) -> bool {
    equal(get(schema, &["anyOf"]), &json!([{"type": "integer"}, {"type": "string"}]))
}

impl<'a> Node<'a> {
    fn is_root(&self) -> bool {
        matches!(self.place, Place::Root)
    }

    fn is_restriction(&self) -> bool {
        matches!(self.place, Place::Restriction { .. })
    }

    fn names_types(&self) -> bool {
        match &self.place {
            Place::Restriction { names_types, .. } => *names_types,
            _ => is_int_or_string(self.schema),
        }
    }

    /// What the structure says of the values that this node's restrictions are about.
    fn structure(&self) -> Option<(&'a Value, Path)> {
        match &self.place {
            Place::Root => Some((self.schema, self.path.clone())),
            Place::Restriction { structure, .. } => structure.clone(),
            Place::Item | Place::Field => None,
        }
    }

    /// Adds the nodes right below.
    fn expand(&self, open: &mut Vec<Node<'a>>) {
        for name in ["allOf", "anyOf", "oneOf"] {
            if name == "anyOf" && self.names_types() {
                continue;
            }
            for (i, schema) in list_at(self.schema, &[name]).iter().enumerate() {
                let names_types =
                    name == "allOf" && i == 0 && !self.is_restriction() && is_int_or_string(schema);
                let place = Place::Restriction { structure: self.structure(), names_types };
                open.push(Node { schema, path: self.path.child(name).index(i), place });
            }
        }
        let not = Place::Restriction { structure: self.structure(), names_types: false };
        open.push(Node { schema: get(self.schema, &["not"]), path: self.path.child("not"), place: not });

        open.push(self.inner(
            get(self.schema, &["items"]),
            Place::Item,
            |at: &Path| at.child("items"),
            &["items"],
        ));
        for (name, schema) in map_at(self.schema, "properties") {
            let step = |at: &Path| at.child("properties").key(name);
            open.push(self.inner(schema, Place::Field, step, &["properties", name.as_str()]));
        }
        if !self.is_restriction() {
            let schema = get(self.schema, &["additionalProperties"]);
            open.push(Node { schema, path: self.path.child("additionalProperties"), place: Place::Field });
        }
    }

    /// The node of a list's items or of a field: of the structure, or of a restriction that goes on there.
    fn inner(
        &self,
        schema: &'a Value,
        place: Place<'a>,
        step: impl Fn(&Path) -> Path,
        names: &[&str],
    ) -> Node<'a> {
        let path = step(&self.path);
        if !self.is_restriction() {
            return Node { schema, path, place };
        }
        // Of what the structure does not have, it does not have the parts either: that is said once.
        let known = self.structure().filter(|(structure, _)| structure.is_object());
        let structure = known.map(|(structure, at)| (get(structure, names), step(&at)));
        Node { schema, path, place: Place::Restriction { structure, names_types: false } }
    }

    fn faults(&self, errors: &mut ErrorList) {
        let pattern = str_at(self.schema, &["pattern"]);
        if !pattern.is_empty()
            && let Err(e) = Regex::new(pattern)
        {
            let text = e.to_string();
            let why = text.lines().last().unwrap_or_default().trim_start_matches("error: ");
            let text = format!(
                "must be a valid regular expression, but isn't: error parsing regexp: {why}: `{pattern}`"
            );
            errors.push(field::invalid(&self.path.child("pattern"), pattern, &text));
        }
        if let Place::Restriction { structure, .. } = &self.place {
            if let Some((_, at)) = structure.as_ref().filter(|(structure, _)| !structure.is_object()) {
                errors.push(field::required(at, &format!("because it is defined in {}", self.path)));
            }
            self.says_of_structure(errors);
        } else {
            self.type_faults(errors);
            self.extension_faults(errors);
            self.known_fields(errors);
        }
    }

    /// A restriction describes no structure.
    fn says_of_structure(&self, errors: &mut ErrorList) {
        const EMPTY: &[&str] = &["type", "title", "description", "x-kubernetes-list-map-keys"];
        const UNDEFINED: &[&str] =
            &["additionalProperties", "default", "x-kubernetes-list-type", "x-kubernetes-map-type"];
        const FALSE: &[&str] = &[
            "nullable",
            "x-kubernetes-preserve-unknown-fields",
            "x-kubernetes-embedded-resource",
            "x-kubernetes-int-or-string",
        ];
        for (state, names) in [("empty", EMPTY), ("undefined", UNDEFINED), ("false", FALSE)] {
            for name in names {
                let value = get(self.schema, &[*name]);
                if is_set(value) || (state == "undefined" && !value.is_null()) {
                    let text = format!("must be {state} to be structural");
                    errors.push(field::forbidden(&self.path.child(name), &text));
                }
            }
        }
        if self.schema.get("properties").is_some_and(|p| p.get("metadata").is_some()) {
            let at = self.path.child("properties").key("metadata");
            errors.push(field::forbidden(&at, "must not be specified in a nested context"));
        }
    }

    fn flag(&self, extension: &str) -> bool {
        bool_at(self.schema, &[format!("x-kubernetes-{extension}").as_str()])
    }

    /// Every place has a type, and the type fits.
    fn type_faults(&self, errors: &mut ErrorList) {
        let type_ = str_at(self.schema, &["type"]);
        let at = self.path.child("type");
        if self.flag("embedded-resource") && type_ != "object" {
            let text = "must be object if x-kubernetes-embedded-resource is true";
            errors.push(wrong_type(&self.path, type_, text));
        } else if type_.is_empty() && !self.flag("int-or-string") && !self.flag("preserve-unknown-fields") {
            let whose = match self.place {
                Place::Root => "at the root",
                Place::Item => "for specified array items",
                _ => "for specified object fields",
            };
            errors.push(field::required(&at, &format!("must not be empty {whose}")));
        }
        if self.is_root() && !matches!(type_, "" | "object") {
            errors.push(field::invalid(&at, type_, "must be object at the root"));
        }
        if type_ == "array" && !get(self.schema, &["items"]).is_object() {
            errors.push(field::required(&self.path.child("items"), "must be specified"));
        }
    }

    /// Kubernetes' extensions exclude each other and `additionalProperties`.
    fn extension_faults(&self, errors: &mut ErrorList) {
        let embedded = self.flag("embedded-resource");
        if self.flag("int-or-string") {
            for other in ["preserve-unknown-fields", "embedded-resource"].into_iter().filter(|o| self.flag(o))
            {
                let at = self.path.child(&format!("x-kubernetes-{other}"));
                let text = "must be false if x-kubernetes-int-or-string is true";
                errors.push(field::invalid(&at, true, text));
            }
        }
        if !get(self.schema, &["additionalProperties"]).is_null() {
            let at = self.path.child("additionalProperties");
            if self.is_root() {
                errors.push(field::forbidden(&at, "must not be used at the root"));
            }
            if embedded {
                let text = "must not be used if x-kubernetes-embedded-resource is set";
                errors.push(field::forbidden(&at, text));
            }
        }
        if embedded && !self.flag("preserve-unknown-fields") && !is_set(get(self.schema, &["properties"])) {
            let text = "must not be empty if x-kubernetes-embedded-resource is true without x-kubernetes-preserve-unknown-fields";
            errors.push(field::required(&self.path.child("properties"), text));
        }
    }

    /// What every object has is as everywhere.
    fn known_fields(&self, errors: &mut ErrorList) {
        let property = |name: &str| self.schema.get("properties").and_then(|p| p.get(name));
        let at = |name: &str| self.path.child("properties").key(name);
        if self.is_root() || self.flag("embedded-resource") {
            for (name, wanted) in [("kind", "string"), ("apiVersion", "string"), ("metadata", "object")] {
                let own = property(name).map(|p| str_at(p, &["type"]));
                if let Some(own) = own.filter(|own| *own != wanted) {
                    let text = format!("must be {wanted}");
                    errors.push(field::invalid(&at(name).child("type"), own, &text));
                }
            }
        }
        let Some(metadata) = property("metadata").filter(|_| self.is_root()) else { return };
        let restricts_names =
            map_at(metadata, "properties").all(|(name, _)| matches!(name.as_str(), "name" | "generateName"));
        let allowed = |name: &str| match name {
            "type" | "default" => true,
            "properties" => restricts_names,
            _ => false,
        };
        let mut said = metadata.as_object().into_iter().flatten().filter(|(_, value)| is_set(value));
        if said.any(|(name, _)| !allowed(name)) {
            let text = "must not specify anything other than name and generateName, but metadata is implicitly specified";
            errors.push(field::forbidden(&at("metadata"), text));
        }
    }
}
