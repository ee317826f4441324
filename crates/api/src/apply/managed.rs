//! `metadata.managedFields`: who owns which fields.

use std::collections::BTreeMap;

use pilothouse_apimachinery::json::{Map, Value};
use pilothouse_apimachinery::time::Timestamp;

use super::set::Set;

/// How a manager works on an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    /// By server-side apply.
    Apply,
    /// By create, update and the other patches.
    Update,
}

impl Operation {
    fn name(self) -> &'static str {
        match self {
            Operation::Apply => "Apply",
            Operation::Update => "Update",
        }
    }
}

/// What tells one manager from another. Appliers are the same manager in every version.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ManagerId {
    /// Name.
    pub name: String,
    /// How it works.
    pub operation: Operation,
    /// Version for updaters, empty for appliers.
    pub api_version: String,
    /// Subresource; releases after 1.21 tell them apart.
    pub subresource: String,
}

impl ManagerId {
    /// How conflicts name it: `"m"`, for updaters `"m" using v1`.
    pub fn show(&self) -> String {
        let mut out = format!("{:?}", self.name);
        if !self.subresource.is_empty() {
            out += &format!(" with subresource {:?}", self.subresource);
        }
        if self.operation == Operation::Update {
            out += &format!(" using {}", self.api_version);
        }
        out
    }
}

/// What one manager owns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owned {
    /// Paths.
    pub set: Set,
    /// In which version the paths are meant.
    pub api_version: String,
    /// When it last changed what it owns; RFC 3339.
    pub time: Option<String>,
}

/// All managers of an object.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Managed {
    /// By manager.
    pub managers: BTreeMap<ManagerId, Owned>,
}

impl Managed {
    /// Reads `metadata.managedFields`. Nothing there is an empty table. `own` says whether they have been written here,
    /// and need not be looked at.
    pub fn decode(entries: &Value, own: bool) -> Result<Managed, String> {
        let mut out = Managed::default();
        let empty = Vec::new();
        for entry in entries.as_array().unwrap_or(&empty) {
            let text = |name: &str| entry.get(name).and_then(Value::as_str).unwrap_or("").to_string();
            let operation = match text("operation").as_str() {
                "Apply" => Operation::Apply,
                "Update" => Operation::Update,
                other => return Err(format!("operation must be `Apply` or `Update`: {other}")),
            };
            let api_version = text("apiVersion");
            if api_version.is_empty() {
                return Err("apiVersion must not be empty".into());
            }
            match text("fieldsType").as_str() {
                "FieldsV1" => {}
                "" => return Err("missing fieldsType in managed fields entry".into()),
                other => return Err(format!("invalid fieldsType {other:?} in managed fields entry")),
            }
            let set = match entry.get("fieldsV1") {
                None | Some(Value::Null) => Set::default(),
                Some(Value::Object(fields)) if own => Set::written(fields),
                Some(fields) => Set::from_fields_v1(fields)?,
            };
            let id = ManagerId {
                name: text("manager"),
                operation,
                api_version: if operation == Operation::Update { api_version.clone() } else { String::new() },
                subresource: text("subresource"),
            };
            let time = Some(text("time")).filter(|t| !t.is_empty());
            out.managers.insert(id, Owned { set, api_version, time });
        }
        Ok(out)
    }

    /// The entries as `metadata.managedFields` has them: appliers first, then by time, name and version.
    pub fn encode(&self) -> Vec<Value> {
        let mut entries: Vec<(&ManagerId, &Owned)> = self.managers.iter().collect();
        entries.sort_by_key(|(id, owned)| {
            (id.operation, seconds(owned.time.as_deref()), &id.name, &owned.api_version, &id.subresource)
        });
        entries
            .into_iter()
            .map(|(id, owned)| {
                let mut entry = Map::new();
                entry.insert("apiVersion", owned.api_version.as_str());
                entry.insert("fieldsType", "FieldsV1");
                entry.insert("fieldsV1", owned.set.to_fields_v1());
                if !id.name.is_empty() {
                    entry.insert("manager", id.name.as_str());
                }
                entry.insert("operation", id.operation.name());
                if !id.subresource.is_empty() {
                    entry.insert("subresource", id.subresource.as_str());
                }
                if let Some(time) = &owned.time {
                    entry.insert("time", time.as_str());
                }
                Value::Object(entry)
            })
            .collect()
    }

    /// The sets of all managers, without times.
    pub fn sets(&self) -> BTreeMap<&ManagerId, (&Set, &str)> {
        self.managers.iter().map(|(id, o)| (id, (&o.set, o.api_version.as_str()))).collect()
    }

    /// Merges the oldest updaters into one `ancient-changes` per version until there are no more than `max`.
    pub fn cap_updaters(&mut self, max: usize) {
        let updaters = || self.managers.keys().filter(|id| id.operation == Operation::Update);
        let mut count = updaters().count();
        if count <= max {
            return;
        }
        let mut updaters: Vec<ManagerId> = updaters().cloned().collect();
        updaters.sort_by_cached_key(|id| (seconds(self.managers[id].time.as_deref()), id.clone()));
        let mut first_of_version: BTreeMap<(String, String), ManagerId> = BTreeMap::new();
        for id in updaters {
            if count <= max {
                break;
            }
            let version = (id.api_version.clone(), id.subresource.clone());
            let Some(first) = first_of_version.get(&version) else {
                first_of_version.insert(version, id);
                continue;
            };
            let bucket = ManagerId { name: ANCIENT.into(), ..id.clone() };
            let first = if self.managers.contains_key(&bucket) { bucket.clone() } else { first.clone() };
            let (Some(old), Some(own)) = (self.managers.remove(&first), self.managers.remove(&id)) else {
                continue;
            };
            self.managers.insert(bucket, Owned { set: old.set.union(own.set), ..own });
            count -= 1;
        }
    }
}

/// The manager that the oldest updaters are merged into.
const ANCIENT: &str = "ancient-changes";

fn seconds(time: Option<&str>) -> i64 {
    time.and_then(|t| Timestamp::parse(t).ok()).map_or(0, |t| t.seconds)
}

/// A manager's name: `fieldManager` of the request, else the user agent up to the first `/`, without what cannot be
/// printed and at most 128 bytes.
pub fn manager_name(field_manager: &str, user_agent: &str) -> String {
    const MAX: usize = 128;
    if !field_manager.is_empty() {
        return field_manager.to_string();
    }
    let mut out = String::new();
    for c in user_agent.split('/').next().unwrap_or("").chars().filter(|c| !c.is_control()) {
        if out.len() + c.len_utf8() > MAX {
            break;
        }
        out.push(c);
    }
    out
}
