//! What a resource does to its objects on create and update, and what it refuses.

use pilothouse_apimachinery::field::ErrorList;
use pilothouse_apimachinery::json::{self, Value, get_i64};
use pilothouse_apimachinery::names;
use pilothouse_apimachinery::status::Status;
use pilothouse_apimachinery::version::Release;

use super::Resource;
use super::resource::Body;
use crate::kinds::Context;
use crate::meta;

impl Resource {
    /// The generation that a new object begins with is 1, where the kind has one.
    fn has_generation(&self) -> bool {
        self.as_kind().is_some_and(|k| k.has_generation && self.release.minor >= k.generation_since)
    }

    /// What the kind clears and sets on a new object in the hub version. [`meta::prepare_create`] comes before.
    pub fn prepare_create(&self, object: &mut Value, context: &Context) {
        match &self.body {
            Body::BuiltIn { kind, .. } => {
                (kind.prepare_create)(object, context);
                if self.has_generation() {
                    json::set(object, &["metadata", "generation"], 1);
                }
            }
            Body::Custom { version, .. } => version.prepare_create(object),
        }
    }

    /// What the kind carries over on an update, in the hub version. [`meta::prepare_update`] comes before.
    pub fn prepare_update(&self, new: &mut Value, old: &Value, context: &Context) {
        match &self.body {
            Body::BuiltIn { kind, .. } => {
                (kind.prepare_update)(new, old, context);
                if self.has_generation() {
                    let annotations = ["metadata", "annotations"];
                    let changed = meta::spec_changed(new, old)
                        || (kind.generation_on_annotations
                            && context.subresource != "status"
                            && !meta::semantically_equal(
                                json::get(new, &annotations),
                                json::get(old, &annotations),
                            ));
                    let raise = changed && !kind.keeps_generation;
                    let generation = get_i64(old, &["metadata", "generation"]) + i64::from(raise);
                    if generation != 0 {
                        json::set(new, &["metadata", "generation"], generation);
                    }
                }
            }
            Body::Custom { version, .. } => match context.subresource {
                "status" => version.prepare_status_update(new, old),
                _ => version.prepare_update(new, old),
            },
        }
    }

    /// Whether finalizers without a domain must be Kubernetes' own: not where the API extension servers validate.
    fn standard_finalizers(&self) -> bool {
        !self.is_custom() && !matches!(&*self.group, "apiextensions.k8s.io" | "apiregistration.k8s.io")
    }

    fn name_fn(&self) -> fn(&str, bool) -> Vec<String> {
        self.as_kind().map_or(names::dns1123_subdomain_name, |k| k.name_fn)
    }

    /// Faults of a new object in the hub version, metadata included.
    pub fn validate(&self, object: &Value, context: &Context) -> ErrorList {
        let mut errs = if self.is_stored() {
            meta::validate(object, self.namespaced, self.standard_finalizers(), self.name_fn())
        } else {
            ErrorList::new()
        };
        errs.extend(match &self.body {
            Body::BuiltIn { kind, .. } => (kind.validate)(object, context),
            Body::Custom { version, .. } => version.validate(object),
        });
        if self.release == Release::V1_20 && self.as_kind().is_some_and(|k| k.validated_twice) {
            errs.extend_from_within(..);
        }
        errs
    }

    /// Faults of an update in the hub version, metadata included. Those of metadata are reported several times, as
    /// v1.20 does: by what all resources have in common, and by the kind.
    pub fn validate_update(&self, new: &Value, old: &Value, context: &Context) -> ErrorList {
        let mut errs = meta::validate(new, self.namespaced, false, names::path_segment_name);
        errs.extend(meta::validate_update(new, old, false));
        let (as_new, as_update) = match self.as_kind() {
            Some(kind) if context.subresource.is_empty() => kind.update_checks,
            _ => (0, 1),
        };
        for _ in 0..as_new {
            errs.extend(meta::validate(new, self.namespaced, self.standard_finalizers(), self.name_fn()));
        }
        for _ in 0..as_update {
            errs.extend(meta::validate_update(new, old, self.standard_finalizers()));
        }
        errs.extend(match &self.body {
            Body::BuiltIn { kind, .. } => (kind.validate_update)(new, old, context),
            Body::Custom { version, .. } if context.subresource == "status" => {
                version.validate_status_update(new, old)
            }
            Body::Custom { version, .. } => version.validate_update(new, old),
        });
        errs
    }

    /// The group that errors of validation name.
    pub fn error_group(&self) -> &str {
        match self.as_kind() {
            Some(kind) => kind.invalid_group.unwrap_or(kind.group()),
            None => &self.group,
        }
    }

    /// 422 with the faults of an object.
    pub fn invalid(&self, name: &str, errors: &ErrorList) -> Status {
        Status::invalid(self.error_group(), &self.kind, name, errors)
    }

    /// Whether an update without a resource version is allowed.
    pub fn allow_unconditional_update(&self) -> bool {
        self.as_kind().is_some_and(|k| k.allow_unconditional_update)
    }

    /// Whether an update may create the object.
    pub fn create_on_update(&self) -> bool {
        self.as_kind().is_some_and(|k| k.create_on_update)
    }

    /// How long an object lives, in seconds; 0 for ever.
    pub fn ttl_seconds(&self) -> u64 {
        self.as_kind().map_or(0, |k| k.ttl_seconds)
    }
}
