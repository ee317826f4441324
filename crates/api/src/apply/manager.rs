//! Field management: what create, update, patch and apply do to an object's fields and to `metadata.managedFields`.
//!
//! Objects are here in the version of the request, in Go's canonical form. The live object of a create is the empty one
//! of its kind (`{apiVersion, kind}`, decoded): what it already has belongs to nobody.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::LazyLock;

use pilothouse_apimachinery::json;
use pilothouse_apimachinery::json::{Value, json};
use pilothouse_apimachinery::status::{Result, Status};
use pilothouse_apimachinery::version::Release;

use super::managed::{Managed, ManagerId, Operation, Owned};
use super::path::{Path, show};
use super::set::Set;
use super::typed::{self, Comparison};
use super::types::Type;

/// The most updaters that an object keeps apart.
const MAX_UPDATERS: usize = 10;
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// The manager whose applies take over from client-side apply.
const KUBECTL: &str = "kubectl";

/// An object in another version: the type it has there and its value; `None` where there is no such version.
pub type Convert<'a> = dyn Fn(&Value, &str) -> Option<(Type<'a>, Value)> + 'a;

/// All that managing the fields of an object needs to know.
pub struct FieldManager<'a> {
    /// Release served.
    pub release: Release,
    /// Version of the request, such as `apps/v1`.
    pub api_version: &'a str,
    /// Subresource recorded with the entry: `""` for the object itself, and always in v1.20.
    pub subresource: &'a str,
    /// Whether `managedFields` in the request are ignored: for subresources.
    pub ignore_request_fields: bool,
    /// Type of the object in the version of the request.
    pub type_: Type<'a>,
    /// The empty object of the kind, in the version of the request.
    pub empty: &'a Value,
    /// Fields that the request cannot change, and so does not own: `status` for the object itself. Empty in v1.20.
    pub reset: Set,
    /// Now, RFC 3339.
    pub now: String,
    /// Conversion to the versions in which others own fields.
    pub convert: &'a Convert<'a>,
}

/// Somebody else's claim on a field that an apply wants to change.
type Conflicts = Vec<(ManagerId, Path)>;

enum Failure {
    Conflicts(Conflicts),
    Status(Box<Status>),
}

/// 500 with a bare text, as an error that is no `Status` is answered.
fn bare(text: String) -> Status {
    Status::failure(500, "", text)
}

fn managed_fields(object: &Value) -> &Value {
    json::get(object, &["metadata", "managedFields"])
}

fn without_managed_fields(object: &Value) -> Value {
    let mut out = object.clone();
    json::remove(&mut out, &["metadata", "managedFields"]);
    out
}

fn with_managed_fields(mut object: Value, managed: &Managed) -> Value {
    let entries = managed.encode();
    if entries.is_empty() {
        json::remove(&mut object, &["metadata", "managedFields"]);
    } else {
        json::set(&mut object, &["metadata", "managedFields"], entries);
    }
    object
}

/// Whether the request asks to forget all managers: an empty list, or one empty entry.
fn is_reset(entries: &Value) -> bool {
    match entries.as_array().map(Vec::as_slice) {
        Some([]) => true,
        Some([one]) => one.as_object().is_some_and(|e| e.values().all(|v| v.is_null() || v == "")),
        _ => false,
    }
}

/// Fields that nobody owns.
static STRIPPED: LazyLock<Set> = LazyLock::new(|| {
    Set::of(&[
        &["apiVersion"],
        &["kind"],
        &["metadata"],
        &["metadata", "name"],
        &["metadata", "namespace"],
        &["metadata", "creationTimestamp"],
        &["metadata", "selfLink"],
        &["metadata", "uid"],
        &["metadata", "clusterName"],
        &["metadata", "generation"],
        &["metadata", "managedFields"],
        &["metadata", "resourceVersion"],
    ])
});

impl<'a> FieldManager<'a> {
    /// Records who changed what, for create, update and patches other than apply: the `managedFields` of `new`, renewed.
    /// They are empty where the object does not fit its schema.
    pub fn update(&self, live: &Value, new: &Value, manager: &str) -> Vec<Value> {
        let decode_live = || Managed::decode(managed_fields(live), true).unwrap_or_default();
        let requested = managed_fields(new);
        let unchanged = requested == managed_fields(live);
        let managed = if self.ignore_request_fields {
            decode_live()
        } else if is_reset(requested) {
            Managed::default()
        } else {
            match Managed::decode(requested, unchanged) {
                Ok(managed) if !managed.managers.is_empty() => managed,
                _ => decode_live(),
            }
        };
        // An object that is not tracked does not become so by an update, only by its creation or an apply.
        if managed.managers.is_empty() && !json::str_at(live, &["metadata", "uid"]).is_empty() {
            return Vec::new();
        }
        // That `managedFields` differ is no change: nobody owns them.
        self.track_update(live, new, managed, manager).unwrap_or_default().encode()
    }

    /// Applies a configuration to the live object: the merged object, still to be decoded and defaulted, with its
    /// managers. The same live object comes back where nothing changes.
    ///
    /// 400 for a configuration in another version or with `managedFields`, 409 for conflicts unless `force`, 500 (as
    /// Kubernetes does) for one that does not fit the schema.
    pub fn apply(&self, live: &Value, config: &Value, manager: &str, force: bool) -> Result<Value> {
        let given = json::str_at(config, &["apiVersion"]);
        if given != self.api_version {
            return Err(Status::bad_request(format!(
                "Incorrect version specified in apply patch. Specified patch version: {given}, expected: {}",
                self.api_version
            )));
        }
        let mut managed = Managed::decode(managed_fields(live), true)
            .map_err(|e| bare(format!("failed to decode managed fields: {e}")))?;
        let live = without_managed_fields(live);
        if !managed_fields(config).is_null() {
            return Err(Status::bad_request("metadata.managedFields must be nil"));
        }
        typed::validate(self.type_, config)
            .map_err(|e| bare(format!("failed to create typed patch object: {e}")))?;
        if managed.managers.is_empty() {
            managed = self.track_update(self.empty, &live, managed, "before-first-apply").map_err(bare)?;
        }
        let mut outcome = self.apply_managed(&live, config, managed.clone(), manager, force);
        if let (Err(Failure::Conflicts(conflicts)), KUBECTL) = (&outcome, manager)
            && let Some(allowed) = self.allowed_by_last_applied(&live)
        {
            let left: Conflicts = conflicts.iter().filter(|(_, path)| !allowed.has(path)).cloned().collect();
            outcome = if left.is_empty() {
                self.apply_managed(&live, config, managed, manager, true)
            } else {
                Err(Failure::Conflicts(left))
            };
        }
        let (mut object, managed) = match outcome {
            Ok(done) => done,
            Err(Failure::Conflicts(conflicts)) => return Err(conflict_status(&conflicts)),
            Err(Failure::Status(status)) => return Err(*status),
        };
        if manager == KUBECTL && json::has(&object, &["metadata", "annotations", LAST_APPLIED]) {
            let mut applied = config.clone();
            json::remove(&mut applied, &["metadata", "annotations", LAST_APPLIED]);
            json::set(&mut object, &["metadata", "annotations", LAST_APPLIED], format!("{applied}\n"));
        }
        Ok(with_managed_fields(object, &managed))
    }

    fn field_set(&self, type_: Type<'_>, object: &Value) -> Set {
        typed::field_set(type_, object, self.release != Release::V1_20)
    }

    fn id(&self, manager: &str, operation: Operation) -> ManagerId {
        ManagerId {
            name: if manager.is_empty() { "unknown".into() } else { manager.into() },
            operation,
            api_version: if operation == Operation::Update { self.api_version.into() } else { String::new() },
            subresource: self.subresource.into(),
        }
    }

    fn track_update(
        &self,
        live: &Value,
        new: &Value,
        managed: Managed,
        manager: &str,
    ) -> std::result::Result<Managed, String> {
        typed::validate_decoded(self.type_, live)?;
        typed::validate_decoded(self.type_, new)?;
        let id = self.id(manager, Operation::Update);
        let former = managed.managers.get(&id).cloned();
        let mut managed = self.reconcile(live, managed);
        let (compared, mut sets) = match self.contest(live, new, &mut managed, None, true) {
            Ok(done) => done,
            // A forced contest has no conflicts.
            Err(_) => return Err("conflict".into()),
        };
        let taken = compared.changed.difference(&compared.removed);
        let taken = taken.recursive_difference(&self.reset).difference(&STRIPPED);
        if !taken.is_empty() {
            let set = match sets.managers.remove(&id) {
                Some(before) => before.set.union(taken),
                None => taken,
            };
            // The time is that of the last change of what it owns, not of values.
            let time = former.filter(|f| f.set == set).map_or_else(|| Some(self.now.clone()), |f| f.time);
            sets.managers.insert(id, Owned { set, api_version: self.api_version.into(), time });
        }
        sets.cap_updaters(MAX_UPDATERS);
        Ok(sets)
    }

    fn apply_managed(
        &self,
        live: &Value,
        config: &Value,
        managed: Managed,
        manager: &str,
        force: bool,
    ) -> std::result::Result<(Value, Managed), Failure> {
        let typed_live = typed::validate(self.type_, live);
        typed_live.map_err(|e| {
            Failure::Status(Box::new(bare(format!("failed to create typed live object: {e}"))))
        })?;
        let id = self.id(manager, Operation::Apply);
        let former = managed.clone();
        let mut managed = self.reconcile(live, managed);
        let merged = typed::merge(self.type_, live, config);
        let last = managed.managers.remove(&id);
        let set = self.field_set(self.type_, config).recursive_difference(&self.reset);
        let time = last.as_ref().and_then(|l| l.time.clone());
        managed.managers.insert(id.clone(), Owned { set, api_version: self.api_version.into(), time });
        let new = self.prune(merged, &managed, last.as_ref());
        let (compared, mut managed) = self.contest(live, &new, &mut managed, Some(&id), force)?;
        if let Some(own) = managed.managers.get_mut(&id) {
            own.set = std::mem::take(&mut own.set).difference(&STRIPPED);
            if own.set.is_empty() {
                managed.managers.remove(&id);
            }
        }
        let same = compared.is_same();
        if (!same || managed.sets() != former.sets())
            && let Some(own) = managed.managers.get_mut(&id)
        {
            own.time = Some(self.now.clone());
        }
        Ok((if same { live.clone() } else { new }, managed))
    }

    /// Brings what the managers own up to date with today's schema; managers in versions that are gone are dropped.
    fn reconcile(&self, live: &Value, managed: Managed) -> Managed {
        let mut versions: BTreeMap<String, Option<(Type<'a>, Cow<'_, Value>)>> = BTreeMap::new();
        let managers = managed.managers.into_iter().filter_map(|(id, owned)| {
            let at = versions
                .entry(owned.api_version.clone())
                .or_insert_with(|| self.at(live, &owned.api_version));
            let (type_, object) = at.as_ref()?;
            let set = typed::reconcile(*type_, owned.set, object);
            Some((id, Owned { set, ..owned }))
        });
        Managed { managers: managers.collect() }
    }

    fn at<'v>(&self, object: &'v Value, api_version: &str) -> Option<(Type<'a>, Cow<'v, Value>)> {
        if api_version == self.api_version {
            Some((self.type_, Cow::Borrowed(object)))
        } else {
            (self.convert)(object, api_version).map(|(type_, object)| (type_, Cow::Owned(object)))
        }
    }

    /// Takes from the other managers what has changed from `live` to `new`, or says what would be taken.
    fn contest(
        &self,
        live: &Value,
        new: &Value,
        managed: &mut Managed,
        own: Option<&ManagerId>,
        force: bool,
    ) -> std::result::Result<(Comparison, Managed), Failure> {
        let compared = typed::compare(self.type_, live, new);
        // What counts of it: nothing that the request cannot change.
        let relevant = |c: Comparison| Comparison {
            removed: c.removed.recursive_difference(&self.reset),
            changed: c.changed.recursive_difference(&self.reset),
        };
        let here = if self.reset.is_empty() { None } else { Some(relevant(compared.clone())) };
        let here = here.as_ref().unwrap_or(&compared);
        let mut elsewhere: BTreeMap<String, Option<Comparison>> = BTreeMap::new();
        let mut conflicts = Conflicts::new();
        let mut out = Managed::default();
        for (id, owned) in std::mem::take(&mut managed.managers) {
            if Some(&id) == own {
                out.managers.insert(id, owned);
                continue;
            }
            let there = if owned.api_version == self.api_version {
                here
            } else {
                let compare = || {
                    let (type_, live) = self.at(live, &owned.api_version)?;
                    let (_, new) = self.at(new, &owned.api_version)?;
                    Some(relevant(typed::compare(type_, &live, &new)))
                };
                match elsewhere.entry(owned.api_version.clone()).or_insert_with(compare) {
                    Some(there) => there,
                    None => continue,
                }
            };
            let contested = owned.set.intersection(&there.changed);
            if !force {
                conflicts.extend(contested.paths().into_iter().map(|path| (id.clone(), path)));
            }
            let set = owned.set.difference(&contested).difference(&there.removed);
            if !set.is_empty() {
                out.managers.insert(id, Owned { set, ..owned });
            }
        }
        if !force && !conflicts.is_empty() {
            return Err(Failure::Conflicts(conflicts));
        }
        Ok((compared, out))
    }

    /// Removes what the applier owned, owns no longer, and nobody else owns.
    fn prune(&self, merged: Value, managed: &Managed, last: Option<&Owned>) -> Value {
        let Some(last) = last.filter(|l| !l.set.is_empty()) else { return merged };
        let Some((last_type, full)) = self.at(&merged, &last.api_version) else { return merged };
        let mut full = full.into_owned();
        let last_set = last.set.with_named_fields(last_type);
        let mut pruned = typed::remove(last_type, &full, &last_set);
        let mut version = last.api_version.clone();

        // Back comes what others own, in whichever version.
        let mut owned: BTreeMap<&str, Set> = BTreeMap::new();
        for o in managed.managers.values() {
            let slot = owned.entry(&o.api_version).or_default();
            *slot = std::mem::take(slot).union(o.set.clone());
        }
        for (other, set) in owned {
            let (Some((type_, f)), Some((_, p))) = (
                self.between(&full, &version, other, last_type, &last.api_version),
                self.between(&pruned, &version, other, last_type, &last.api_version),
            ) else {
                continue;
            };
            let had = self.field_set(type_, &f).with_named_fields(type_);
            let has = self.field_set(type_, &p).with_named_fields(type_);
            let kept = has.union(set.with_named_fields(type_));
            pruned = typed::remove(type_, &f, &had.difference(&kept));
            full = f;
            version = other.to_string();
        }

        // And what the applier had not owned.
        let (Some((_, full)), Some((_, pruned))) = (
            self.between(&full, &version, &last.api_version, last_type, &last.api_version),
            self.between(&pruned, &version, &last.api_version, last_type, &last.api_version),
        ) else {
            return merged;
        };
        let had = self.field_set(last_type, &full).with_named_fields(last_type);
        let has = self.field_set(last_type, &pruned).with_named_fields(last_type);
        let out = typed::remove(last_type, &full, &had.difference(&has).intersection(&last_set));
        if last.api_version == self.api_version {
            out
        } else {
            (self.convert)(&out, self.api_version).map_or(merged, |(_, o)| o)
        }
    }

    /// An object taken from one version to another.
    fn between(
        &self,
        object: &Value,
        from: &str,
        to: &str,
        last_type: Type<'a>,
        last_version: &str,
    ) -> Option<(Type<'a>, Value)> {
        if from != to {
            return (self.convert)(object, to);
        }
        let type_ = match to {
            v if v == last_version => last_type,
            v if v == self.api_version => self.type_,
            _ => return (self.convert)(object, to),
        };
        Some((type_, object.clone()))
    }

    /// The fields that client-side apply set and that nobody changed since: `kubectl apply --server-side` may take them.
    fn allowed_by_last_applied(&self, live: &Value) -> Option<Set> {
        let text = json::str_at(live, &["metadata", "annotations", LAST_APPLIED]);
        let last: Value = serde_json::from_str(text).ok()?;
        if json::str_at(&last, &["apiVersion"]) != self.api_version
            || typed::validate(self.type_, &last).is_err()
        {
            return None;
        }
        let c = typed::compare(self.type_, &last, live);
        let set = self.field_set(self.type_, &last);
        Some(set.difference(&c.changed).difference(&c.removed))
    }
}

/// 409 with a cause for every field.
fn conflict_status(conflicts: &Conflicts) -> Status {
    let message = match conflicts.as_slice() {
        [(id, path)] => format!("Apply failed with 1 conflict: conflict with {}: {}", id.show(), show(path)),
        many => {
            let mut by_manager: BTreeMap<&ManagerId, Vec<&Path>> = BTreeMap::new();
            for (id, path) in many {
                by_manager.entry(id).or_default().push(path);
            }
            let mut lines = Vec::new();
            for (id, paths) in by_manager {
                lines.push(format!("conflicts with {}:", id.show()));
                lines.extend(paths.iter().map(|path| format!("- {}", show(path))));
            }
            format!("Apply failed with {} conflicts: {}", many.len(), lines.join("\n"))
        }
    };
    conflicts.iter().fold(Status::failure(409, "Conflict", message), |status, (id, path)| {
        status.cause("FieldManagerConflict", &format!("conflict with {}", id.show()), &show(path))
    })
}

/// Reads the body of an apply request, which may be YAML: 400 for what is neither.
pub fn parse(release: Release, body: &[u8]) -> Result<Value> {
    let value: Value = crate::decode::yaml_of(release, body)
        .map_err(|e| Status::bad_request(format!("error decoding YAML: {e}")))?;
    match value {
        Value::Object(_) => Ok(value),
        Value::Null => Ok(json!({})),
        _ => Err(Status::bad_request("error decoding YAML: error unmarshaling JSON: expected an object")),
    }
}
