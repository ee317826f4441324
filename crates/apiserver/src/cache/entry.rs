//! One object in the cache: its bytes, and the little that selectors ask for.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use parking_lot::Mutex;
use pilothouse_apimachinery::json::{self, Map, Value};
use serde_json::value::RawValue;

use crate::negotiate::{Media, Shape};
use crate::raw;

/// What the cache must know of a resource to keep its objects. The cache itself knows no kinds.
pub trait Codec: Send + Sync {
    /// The object of a stored value, in the hub version.
    fn decode(&self, value: &[u8]) -> Result<Value, String>;

    /// The fields that selectors may name beside `metadata.name` and `metadata.namespace`.
    fn fields(&self, object: &Value) -> Vec<(Arc<str>, String)>;

    /// Whether values have a namespace in their key.
    fn namespaced(&self) -> bool;

    /// The version of an object, where a resource's objects are kept in several.
    fn version(&self, _object: &Value) -> Option<Arc<str>> {
        None
    }

    /// A field by whose value objects are found without a scan.
    fn indexed_field(&self) -> Option<&str> {
        None
    }

    /// A field whose text is kept as it was sent.
    fn raw_field(&self) -> Option<&'static str> {
        None
    }

    /// Whether parsed objects are kept in memory, for resources that plug-ins and authorizers look at all the time.
    fn keep_parsed(&self) -> bool {
        false
    }
}

/// Form of an object other than its JSON in the hub version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FormKey {
    /// Media type.
    pub media: Media,
    /// What is made of the object.
    pub shape: Shape,
    /// What it is part of.
    pub part: Part,
    /// Version.
    pub api_version: Arc<str>,
}

/// What an encoded object is part of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Nothing.
    Object,
    /// A list.
    Item,
    /// A watch event.
    Added,
    /// A watch event.
    Modified,
    /// A watch event.
    Deleted,
}

/// An object at one revision. Its JSON begins `{"metadata":{"resourceVersion":"<revision>",` and lacks `apiVersion` and
/// `kind`: lists leave these out, and versions that differ in nothing else share the bytes.
#[derive(Debug)]
pub struct Entry {
    /// `<namespace>/<name>`, or `<name>` for cluster-wide objects.
    pub key: Box<str>,
    /// Revision of the last write.
    pub revision: u64,
    body: Bytes,
    /// Where the part of the body after the resource version begins.
    rest: usize,
    /// Labels, sorted by key.
    labels: Box<[(Box<str>, Box<str>)]>,
    /// Selectable fields beside name and namespace.
    fields: Box<[(Arc<str>, Box<str>)]>,
    parsed: OnceLock<Arc<Value>>,
    keep: bool,
    forms: Mutex<Vec<(FormKey, Bytes)>>,
    versions: Option<Box<Versions>>,
}

/// An object that is kept in one of several versions.
#[derive(Debug)]
struct Versions {
    own: Arc<str>,
    /// The object in others, as far as somebody has asked.
    shown: Mutex<Vec<(Arc<str>, Arc<Entry>)>>,
}

/// The beginning of every body, up to the revision's digits.
const HEAD: &str = "{\"metadata\":{\"resourceVersion\":\"";

/// The text of a member, to be written in place of its value.
pub type Text<'a> = (&'static str, &'a RawValue);

/// Everything but `apiVersion` and `kind`, `metadata` first and without its resource version: what follows
/// `"metadata":{`.
pub fn serialize_rest(object: &Value, text: Option<Text<'_>>) -> Vec<u8> {
    let mut out = Vec::with_capacity(1024);
    let empty = Map::new();
    let metadata = object.get("metadata").and_then(Value::as_object).unwrap_or(&empty);
    let mut first = true;
    write_members(&mut out, metadata.iter().filter(|(k, _)| *k != "resourceVersion"), &mut first, None);
    out.push(b'}');
    let others = object.as_object().unwrap_or(&empty);
    first = false;
    write_members(
        &mut out,
        others.iter().filter(|(k, _)| !matches!(k.as_str(), "metadata" | "apiVersion" | "kind")),
        &mut first,
        text,
    );
    out.push(b'}');
    out
}

fn write_members<'a>(
    out: &mut Vec<u8>,
    members: impl Iterator<Item = (&'a crate::json::Text, &'a Value)>,
    first: &mut bool,
    text: Option<Text<'_>>,
) {
    for (k, v) in members {
        if !std::mem::take(first) {
            out.push(b',');
        }
        json::write_text(k, out);
        out.push(b':');
        match text {
            Some((name, text)) if k == name => out.extend_from_slice(text.get().as_bytes()),
            _ => json::write(v, out),
        }
    }
}

fn with_revision(revision: u64, rest: &[u8]) -> (Bytes, usize) {
    let digits = revision.to_string();
    let mut body = Vec::with_capacity(HEAD.len() + digits.len() + 2 + rest.len());
    body.extend_from_slice(HEAD.as_bytes());
    body.extend_from_slice(digits.as_bytes());
    body.push(b'"');
    let at = body.len();
    if rest.first() != Some(&b'}') {
        body.push(b',');
    }
    body.extend_from_slice(rest);
    (Bytes::from(body), at)
}

impl Entry {
    /// An entry from an object. `rest` is what [`serialize_rest`] makes of it, where that is known already.
    pub fn new(
        codec: &dyn Codec,
        key: &str,
        revision: u64,
        object: Arc<Value>,
        rest: Option<&[u8]>,
    ) -> Entry {
        let (body, at) = match rest {
            Some(rest) => with_revision(revision, rest),
            None => with_revision(revision, &serialize_rest(&object, None)),
        };
        let labels = json::map_at(&object, &["metadata", "labels"])
            .map(|m| {
                m.iter().map(|(k, v)| (Box::from(k.as_str()), Box::from(v.as_str().unwrap_or("")))).collect()
            })
            .unwrap_or_default();
        let fields = codec.fields(&object).into_iter().map(|(k, v)| (k, v.into_boxed_str())).collect();
        let versions = codec.version(&object).map(|own| Box::new(Versions { own, shown: Mutex::default() }));
        let keep = codec.keep_parsed();
        let parsed = OnceLock::new();
        if keep {
            let _ = parsed.set(stamped(object, revision));
        }
        Entry {
            key: key.into(),
            revision,
            body,
            rest: at,
            labels,
            fields,
            parsed,
            keep,
            forms: Mutex::new(Vec::new()),
            versions,
        }
    }

    /// The entry of a stored value.
    pub fn stored(codec: &dyn Codec, key: &str, revision: u64, value: &[u8]) -> Result<Entry, String> {
        let object = codec.decode(value)?;
        let text = codec.raw_field().and_then(|name| Some((name, raw::member(value, name)?)));
        let rest = text
            .filter(|(name, _)| object.get(*name).is_some())
            .map(|(name, text)| serialize_rest(&object, Some((name, &text))));
        Ok(Entry::new(codec, key, revision, Arc::new(object), rest.as_deref()))
    }

    /// The JSON without `apiVersion` and `kind`.
    pub fn body(&self) -> &Bytes {
        &self.body
    }

    /// The same with another resource version: deletions carry the revision of the deletion.
    pub fn body_at(&self, revision: u64) -> Bytes {
        if revision == self.revision {
            return self.body.clone();
        }
        let rest = &self.body[self.rest..];
        with_revision(revision, rest.strip_prefix(b",").unwrap_or(rest)).0
    }

    /// The object, without `apiVersion` and `kind`.
    pub fn object(&self) -> Arc<Value> {
        if let Some(v) = self.parsed.get() {
            return v.clone();
        }
        // The bytes were made from a Value: they are JSON.
        let v = Arc::new(json::from_slice(&self.body).unwrap_or(Value::Null));
        if self.keep {
            return self.parsed.get_or_init(|| v).clone();
        }
        v
    }

    /// The version that the object is in, where a resource's objects are kept in several.
    pub fn version(&self) -> Option<&str> {
        self.versions.as_ref().map(|v| &*v.own)
    }

    /// The object in another version, if [`Entry::keep_shown`] has been told.
    pub fn shown_as(&self, version: &str) -> Option<Arc<Entry>> {
        let shown = self.versions.as_ref()?.shown.lock();
        shown.iter().find(|(v, _)| &**v == version).map(|(_, e)| e.clone())
    }

    /// Keeps the object in another version beside this one; gives what is kept, which may have been there before.
    pub fn keep_shown(&self, version: &Arc<str>, entry: Arc<Entry>) -> Arc<Entry> {
        let Some(versions) = &self.versions else { return entry };
        let mut shown = versions.shown.lock();
        if let Some((_, known)) = shown.iter().find(|(v, _)| v == version) {
            return known.clone();
        }
        shown.push((version.clone(), entry.clone()));
        entry
    }

    /// Namespace, empty for cluster-wide objects.
    pub fn namespace(&self) -> &str {
        self.key.split_once('/').map_or("", |(ns, _)| ns)
    }

    /// Name.
    pub fn name(&self) -> &str {
        self.key.split_once('/').map_or(&*self.key, |(_, name)| name)
    }

    /// A label's value.
    pub fn label(&self, key: &str) -> Option<&str> {
        self.labels.binary_search_by(|(k, _)| (**k).cmp(key)).ok().map(|i| &*self.labels[i].1)
    }

    /// A selectable field's value.
    pub fn field(&self, name: &str) -> Option<&str> {
        match name {
            "metadata.name" => Some(self.name()),
            "metadata.namespace" => Some(self.namespace()),
            _ => self.fields.iter().find(|(k, _)| &**k == name).map(|(_, v)| &**v),
        }
    }

    /// The object in another form, made by `make` the first time.
    pub fn form<E>(&self, key: &FormKey, make: impl FnOnce() -> Result<Bytes, E>) -> Result<Bytes, E> {
        if let Some((_, bytes)) = self.forms.lock().iter().find(|(k, _)| k == key) {
            return Ok(bytes.clone());
        }
        let bytes = make()?;
        let mut forms = self.forms.lock();
        if !forms.iter().any(|(k, _)| k == key) {
            forms.push((key.clone(), bytes.clone()));
        }
        Ok(bytes)
    }
}

/// The object with its resource version and without `apiVersion` and `kind`, as [`Entry::object`] gives it.
fn stamped(object: Arc<Value>, revision: u64) -> Arc<Value> {
    let mut object = Arc::unwrap_or_clone(object);
    if let Some(map) = object.as_object_mut() {
        map.remove("apiVersion");
        map.remove("kind");
        if let Some(metadata) = map.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.insert("resourceVersion", revision.to_string());
        }
    }
    Arc::new(object)
}

#[cfg(test)]
pub(crate) mod tests {
    use pilothouse_apimachinery::json::json;

    use super::*;

    /// JSON objects with a selectable `spec.nodeName`.
    pub(crate) struct Plain;

    impl Codec for Plain {
        fn decode(&self, value: &[u8]) -> Result<Value, String> {
            serde_json::from_slice(value).map_err(|e| e.to_string())
        }
        fn fields(&self, object: &Value) -> Vec<(Arc<str>, String)> {
            let node = object.pointer("/spec/nodeName").and_then(Value::as_str).unwrap_or("");
            vec![("spec.nodeName".into(), node.to_string())]
        }
        fn namespaced(&self) -> bool {
            true
        }
        fn indexed_field(&self) -> Option<&str> {
            Some("spec.nodeName")
        }
    }

    #[test]
    fn bytes_carry_the_revision() {
        let object = json!({"apiVersion": "v1", "kind": "Pod", "data": 1,
            "metadata": {"name": "a", "labels": {"x": "y"}, "resourceVersion": "old"}, "spec": {"nodeName": "n"}});
        let e = Entry::new(&Plain, "ns/a", 12, Arc::new(object), None);
        let v: Value = serde_json::from_slice(e.body()).unwrap();
        assert_eq!(
            v,
            json!({"data": 1, "metadata": {"name": "a", "labels": {"x": "y"}, "resourceVersion": "12"}, "spec": {"nodeName": "n"}})
        );
        let later: Value = serde_json::from_slice(&e.body_at(1234)).unwrap();
        assert_eq!(later["metadata"]["resourceVersion"], "1234");
        assert_eq!(later["metadata"]["name"], "a");
        assert_eq!((e.namespace(), e.name()), ("ns", "a"));
        assert_eq!((e.label("x"), e.label("z")), (Some("y"), None));
        assert_eq!(e.field("spec.nodeName"), Some("n"));
        assert_eq!(*e.object(), v);
        let none = Entry::new(&Plain, "a", 1, Arc::new(json!({})), None);
        assert_eq!(&none.body()[..], br#"{"metadata":{"resourceVersion":"1"}}"#);
        assert_eq!(&none.body_at(22)[..], br#"{"metadata":{"resourceVersion":"22"}}"#);
    }
}
