//! The catalogue: every API type of Kubernetes v1.20 and of the newest release, as data.
//!
//! The data is `data/catalogue.json`, embedded as text. It is read once per release, into compact tables that live
//! as long as the process; names are slices of the embedded text.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::OnceLock;

use pilothouse_apimachinery::json::Value;
use pilothouse_apimachinery::version::Release;
use serde::Deserialize;

static TEXT: &str = include_str!("../data/catalogue.json");

/// Package of `ObjectMeta`, `Status`, `DeleteOptions` and the like.
pub const META_V1: &str = "io.k8s.apimachinery.pkg.apis.meta.v1";

/// A type's place in its catalogue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TypeId(u16);

impl TypeId {
    /// Its index in [`Catalogue::types`].
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// A value that is no struct, list or map; or that has a JSON form of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scalar {
    /// Text.
    String,
    /// Truth.
    Bool,
    /// 32-bit integer.
    Int32,
    /// 64-bit integer.
    Int64,
    /// Floating-point number.
    Double,
    /// Bytes, base64 in JSON.
    Bytes,
    /// RFC 3339 with whole seconds; `null` where it is zero.
    Time,
    /// RFC 3339 with microseconds; `null` where it is zero.
    MicroTime,
    /// `1h30m`.
    Duration,
    /// `100m`, `1Gi`.
    Quantity,
    /// `80` or `"25%"`.
    IntOrString,
    /// Any object (`runtime.RawExtension`).
    RawExtension,
    /// A set of fields (`metav1.FieldsV1`).
    FieldsV1,
    /// Any value (`apiextensions.JSON`).
    Json,
}

/// An item of a list or a value of a map.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Element {
    /// A scalar.
    Scalar(Scalar),
    /// A struct.
    Struct(TypeId),
    /// A list of texts; in protobuf a message with one repeated field.
    StringList,
}

/// The type of a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Shape {
    /// A scalar.
    Scalar(Scalar),
    /// A struct.
    Struct(TypeId),
    /// A list.
    List(Element),
    /// A map with texts for keys.
    Map(Element),
}

impl From<Element> for Shape {
    fn from(e: Element) -> Shape {
        match e {
            Element::Scalar(s) => Shape::Scalar(s),
            Element::Struct(id) => Shape::Struct(id),
            Element::StringList => Shape::List(Element::Scalar(Scalar::String)),
        }
    }
}

/// How server-side apply sees a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ListType {
    /// Owned as a whole; what lists are that say nothing.
    #[default]
    Atomic,
    /// Items are owned one by one and stand once.
    Set,
    /// Items are owned one by one and are told apart by keys.
    Map,
}

/// A field of a struct.
#[derive(Debug, Clone)]
pub struct Field {
    /// Name in JSON.
    pub json: &'static str,
    /// Number in protobuf, 0 where the field is not encoded there.
    pub number: u32,
    /// Type.
    pub shape: Shape,
    /// Whether it is a pointer in Go: absent and zero are two things then.
    pub pointer: bool,
    /// Whether it is left out of JSON where it is empty.
    pub omitempty: bool,
    /// Whether a zero struct is left out too.
    pub omitzero: bool,
    /// Whether clients may leave it out, as OpenAPI says it.
    pub optional: bool,
    /// Whether it is `kind` or `apiVersion`.
    pub type_meta: bool,
    /// Whether strategic merge patches merge it (`patchStrategy` holds `merge`).
    pub patch_merge: bool,
    /// Whether strategic merge patches may name the keys to retain (`retainKeys`).
    pub patch_retain_keys: bool,
    /// Key that strategic merge patches tell the items of a merged list apart by.
    pub patch_merge_key: &'static str,
    /// `patchStrategy` as it stands, for OpenAPI.
    pub patch_strategy: &'static str,
    /// How server-side apply sees the list; `None` where nothing is said.
    pub list_type: Option<ListType>,
    /// Keys of a list of type map.
    pub list_map_keys: &'static [&'static str],
    /// Whether a map or struct is owned as a whole.
    pub atomic: bool,
    /// Default that the type itself states.
    pub default: Option<Value>,
    /// Whether the list is a message of its own in protobuf (`metav1.Verbs`).
    pub wrapped: bool,
    /// Values that the type knows (not: allows), where it is an enumeration.
    pub values: &'static [&'static str],
}

impl Field {
    /// Whether it is in JSON also where the object does not have it.
    pub fn always_present(&self) -> bool {
        if self.type_meta || self.omitzero {
            return false;
        }
        if !self.omitempty {
            return true;
        }
        // `omitempty` does not leave out structs, and these scalars are structs in Go.
        !self.pointer
            && matches!(
                self.shape,
                Shape::Struct(_)
                    | Shape::Scalar(
                        Scalar::Time
                            | Scalar::MicroTime
                            | Scalar::Duration
                            | Scalar::Quantity
                            | Scalar::IntOrString
                            | Scalar::RawExtension
                            | Scalar::Json
                    )
            )
    }
}

/// How a struct is written in JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// As an object.
    Object,
    /// A schema, or a truth value (`JSONSchemaPropsOrBool`).
    OrBool,
    /// A schema, or a list of schemas (`JSONSchemaPropsOrArray`).
    OrArray,
    /// A schema, or a list of texts (`JSONSchemaPropsOrStringArray`).
    OrStringArray,
}

/// A part of a struct's protobuf message.
#[derive(Debug, Clone, Copy)]
pub enum Part {
    /// A field, by its index in [`Type::fields`].
    Field(u16),
    /// An embedded struct: a message of its own in protobuf, the same object in JSON.
    Embedded(TypeId),
}

/// A struct.
#[derive(Debug)]
pub struct Type {
    /// Its place.
    pub id: TypeId,
    /// Full name, such as `io.k8s.api.core.v1.PodSpec`.
    pub full_name: &'static str,
    /// Fields, those of embedded structs among them, in the order of declaration.
    pub fields: Box<[Field]>,
    /// The protobuf message, by ascending number.
    pub parts: Box<[(u32, Part)]>,
    /// How it is written in JSON.
    pub form: Form,
    /// Indices of fields by their names: a [`table`].
    by_name: Box<[u16]>,
    /// Indices of the fields that are always present.
    always: Box<[u16]>,
    /// Whether it has `kind` and `apiVersion`.
    pub has_type_meta: bool,
}

/// The slots of a table that finds fields by their names: [`slot`] is where the search begins.
const EMPTY: u16 = u16::MAX;

/// A table in which every field stands at its [`slot`], or in the next one that was free; half of it is free.
fn table<'a>(names: impl ExactSizeIterator<Item = &'a str>) -> Box<[u16]> {
    let mut slots = vec![EMPTY; (2 * names.len()).next_power_of_two()];
    for (i, name) in names.enumerate() {
        let mut at = slot(name, slots.len());
        while slots[at] != EMPTY {
            at = (at + 1) % slots.len();
        }
        slots[at] = u16::try_from(i).expect("no struct has 65,535 fields");
    }
    slots.into()
}

/// A number made of a name's length, its first and its last bytes.
fn slot(name: &str, slots: usize) -> usize {
    let bytes = name.as_bytes();
    let mix = match (bytes.first_chunk::<8>(), bytes.last_chunk::<8>()) {
        (Some(head), Some(tail)) => u64::from_le_bytes(*head) ^ u64::from_le_bytes(*tail).rotate_left(29),
        _ => match (bytes.first_chunk::<4>(), bytes.last_chunk::<4>()) {
            (Some(head), Some(tail)) => {
                u64::from(u32::from_le_bytes(*head)) << 32 | u64::from(u32::from_le_bytes(*tail))
            }
            _ => bytes.iter().fold(0, |mix, b| mix << 8 | u64::from(*b)),
        },
    };
    let mix = (mix ^ bytes.len() as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    (mix >> 32) as usize & (slots - 1)
}

impl Type {
    /// Short name, such as `PodSpec`.
    pub fn name(&self) -> &'static str {
        self.full_name.rsplit('.').next().unwrap_or(self.full_name)
    }

    /// The Go package's last word and the short name: `v1.PodSpec`.
    pub fn go_name(&self) -> &'static str {
        let dots = self.full_name.rmatch_indices('.').nth(1);
        dots.map_or(self.full_name, |(i, _)| &self.full_name[i + 1..])
    }

    /// A field by its JSON name.
    pub fn field(&self, name: &str) -> Option<&Field> {
        self.field_index(name).map(|i| &self.fields[i])
    }

    /// A field's index by its JSON name.
    pub fn field_index(&self, name: &str) -> Option<usize> {
        let slots = &*self.by_name;
        let mut at = slot(name, slots.len());
        while slots[at] != EMPTY {
            let index = usize::from(slots[at]);
            if self.fields[index].json == name {
                return Some(index);
            }
            at = (at + 1) & (slots.len() - 1);
        }
        None
    }

    /// The fields that are in JSON even where the object does not have them.
    pub fn always_present(&self) -> impl Iterator<Item = (usize, &Field)> {
        self.always.iter().map(|i| (usize::from(*i), &self.fields[usize::from(*i)]))
    }
}

/// All types of one release.
#[derive(Debug)]
pub struct Catalogue {
    release: Release,
    types: Vec<Type>,
    by_name: HashMap<&'static str, TypeId>,
}

impl Catalogue {
    /// The catalogue of a release: v1.20's or the newest. Read when it is first asked for.
    pub fn of(release: Release) -> &'static Catalogue {
        static V1_20: OnceLock<Catalogue> = OnceLock::new();
        static NEWEST: OnceLock<Catalogue> = OnceLock::new();
        if release == Release::V1_20 {
            V1_20.get_or_init(|| Catalogue::read(release))
        } else {
            NEWEST.get_or_init(|| Catalogue::read(pilothouse_apimachinery::version::NEWEST))
        }
    }

    /// The release.
    pub fn release(&self) -> Release {
        self.release
    }

    /// A type by its full name.
    pub fn find(&self, full_name: &str) -> Option<&Type> {
        self.by_name.get(full_name).map(|id| self.get(*id))
    }

    /// The type of a kind that the API serves.
    pub fn kind(&self, group: &str, version: &str, kind: &str) -> Option<&Type> {
        self.find(&format!("{}.{kind}", package(group, version)))
    }

    /// A type of `meta/v1`.
    pub fn meta(&self, name: &str) -> Option<&Type> {
        self.find(&format!("{META_V1}.{name}"))
    }

    /// A type by its place.
    pub fn get(&self, id: TypeId) -> &Type {
        &self.types[id.index()]
    }

    /// All types.
    pub fn types(&self) -> &[Type] {
        &self.types
    }

    fn read(release: Release) -> Catalogue {
        let raw: RawCatalogue<'static> =
            serde_json::from_str(TEXT).expect("the embedded catalogue is read by this module's tests");
        Builder::new(release, &raw).build(&raw)
    }
}

/// The package that holds the types of a group and version.
pub fn package(group: &str, version: &str) -> String {
    match group {
        "" => format!("io.k8s.api.core.{version}"),
        "apiextensions.k8s.io" => format!("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.{version}"),
        "apiregistration.k8s.io" => format!("io.k8s.kube-aggregator.pkg.apis.apiregistration.{version}"),
        "meta.k8s.io" => format!("io.k8s.apimachinery.pkg.apis.meta.{version}"),
        "metrics.k8s.io" => format!("io.k8s.metrics.pkg.apis.metrics.{version}"),
        "internal.apiserver.k8s.io" => format!("io.k8s.api.apiserverinternal.{version}"),
        _ => format!("io.k8s.api.{}.{version}", group.split('.').next().unwrap_or(group)),
    }
}

/// The group of a package: the inverse of [`package`], as far as kinds are served.
pub fn group_of(package: &str) -> Option<&'static str> {
    let word = package.rsplit('.').nth(1)?;
    Some(match word {
        "core" => "",
        "apps" | "autoscaling" | "batch" | "extensions" | "policy" => {
            ["apps", "autoscaling", "batch", "extensions", "policy"].into_iter().find(|g| *g == word)?
        }
        "admissionregistration" => "admissionregistration.k8s.io",
        "apiextensions" => "apiextensions.k8s.io",
        "apiregistration" => "apiregistration.k8s.io",
        "apiserverinternal" => "internal.apiserver.k8s.io",
        "authentication" => "authentication.k8s.io",
        "authorization" => "authorization.k8s.io",
        "certificates" => "certificates.k8s.io",
        "coordination" => "coordination.k8s.io",
        "discovery" => "discovery.k8s.io",
        "events" => "events.k8s.io",
        "flowcontrol" => "flowcontrol.apiserver.k8s.io",
        "networking" => "networking.k8s.io",
        "node" => "node.k8s.io",
        "rbac" => "rbac.authorization.k8s.io",
        "resource" => "resource.k8s.io",
        "scheduling" => "scheduling.k8s.io",
        "storage" => "storage.k8s.io",
        "storagemigration" => "storagemigration.k8s.io",
        "metrics" => "metrics.k8s.io",
        _ => return None,
    })
}

#[derive(Deserialize)]
struct RawCatalogue<'a> {
    #[serde(borrow)]
    packages: HashMap<&'a str, RawPackage<'a>>,
}

#[derive(Deserialize)]
struct RawPackage<'a> {
    #[serde(borrow)]
    types: HashMap<&'a str, RawType<'a>>,
    #[serde(borrow)]
    values: HashMap<&'a str, Vec<&'a str>>,
    #[serde(default, borrow, rename = "in")]
    releases: Vec<&'a str>,
}

#[derive(Deserialize)]
struct RawType<'a> {
    #[serde(borrow)]
    fields: Vec<RawField<'a>>,
    #[serde(default, borrow, rename = "in")]
    releases: Vec<&'a str>,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct RawField<'a> {
    json: &'a str,
    pb: u32,
    #[serde(rename = "type")]
    type_: &'a str,
    #[serde(rename = "ref")]
    ref_: &'a str,
    #[serde(borrow)]
    list: Option<RawElement<'a>>,
    #[serde(borrow)]
    map: Option<RawElement<'a>>,
    values: &'a str,
    ptr: bool,
    omitempty: bool,
    omitzero: bool,
    optional: bool,
    required: bool,
    inline: bool,
    patch_strategy: &'a str,
    patch_merge_key: &'a str,
    list_type: &'a str,
    #[serde(borrow)]
    list_map_keys: Vec<&'a str>,
    map_type: &'a str,
    struct_type: &'a str,
    /// JSON, so with escapes of its own.
    #[serde(borrow)]
    default: Option<Cow<'a, str>>,
    #[serde(borrow, rename = "in")]
    releases: Vec<&'a str>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct RawElement<'a> {
    #[serde(rename = "type")]
    type_: &'a str,
    #[serde(rename = "ref")]
    ref_: &'a str,
    /// Lists of texts only.
    list: Option<serde::de::IgnoredAny>,
    values: &'a str,
}

/// Reads the raw form into tables.
struct Builder {
    release: Release,
    /// The release as the data names it.
    word: String,
    names: Vec<&'static str>,
    by_name: HashMap<&'static str, TypeId>,
}

fn leak<T>(items: Vec<T>) -> &'static [T] {
    if items.is_empty() { &[] } else { Vec::leak(items) }
}

impl Builder {
    fn new(release: Release, raw: &RawCatalogue<'static>) -> Builder {
        let word = format!("{}.{}", release.major, release.minor);
        let mut builder = Builder { release, word, names: Vec::new(), by_name: HashMap::new() };
        let mut full: Vec<&'static str> = Vec::new();
        for (package, content) in &raw.packages {
            if !builder.serves_package(package, &content.releases) {
                continue;
            }
            for (name, t) in &content.types {
                if builder.serves_package(package, &t.releases) && !package.ends_with(".pkg.runtime") {
                    full.push(String::leak(format!("{package}.{name}")));
                }
            }
        }
        full.sort_unstable();
        for (i, name) in full.iter().enumerate() {
            let id = TypeId(u16::try_from(i).expect("there are fewer than 65,536 types"));
            builder.by_name.insert(name, id);
        }
        builder.names = full;
        builder
    }

    fn serves(&self, releases: &[&str]) -> bool {
        releases.is_empty() || releases.contains(&self.word.as_str())
    }

    /// The data has the aggregator's types from v1.20 only; v1's have not changed since.
    fn serves_package(&self, package: &str, releases: &[&str]) -> bool {
        self.serves(releases) || package == "io.k8s.kube-aggregator.pkg.apis.apiregistration.v1"
    }

    fn build(self, raw: &RawCatalogue<'static>) -> Catalogue {
        let mut types = Vec::with_capacity(self.names.len());
        for (i, full_name) in self.names.iter().enumerate() {
            types.push(self.type_(TypeId(u16::try_from(i).unwrap_or(u16::MAX)), full_name, raw));
        }
        Catalogue { release: self.release, types, by_name: self.by_name }
    }

    /// The type that a reference means in this release: some were renamed or moved between the two.
    fn target<'t>(&self, name: &'t str) -> &'t str {
        if self.by_name.contains_key(name) {
            return name;
        }
        let other = match name {
            "io.k8s.api.core.v1.ProbeHandler" | "io.k8s.api.core.v1.LifecycleHandler" => {
                "io.k8s.api.core.v1.Handler"
            }
            "io.k8s.api.core.v1.Handler" => "io.k8s.api.core.v1.LifecycleHandler",
            "v1.MatchCondition" => "io.k8s.api.admissionregistration.v1.MatchCondition",
            "io.k8s.api.admissionregistration.v1beta1.RuleWithOperations" => {
                "io.k8s.api.admissionregistration.v1.RuleWithOperations"
            }
            _ => name,
        };
        if self.by_name.contains_key(other) { other } else { name }
    }

    fn raw_type<'r>(&self, full_name: &str, raw: &'r RawCatalogue<'static>) -> Option<&'r RawType<'static>> {
        let (package, name) = full_name.rsplit_once('.')?;
        raw.packages.get(package)?.types.get(name)
    }

    fn type_(&self, id: TypeId, full_name: &'static str, raw: &RawCatalogue<'static>) -> Type {
        let mut fields = Vec::new();
        let mut parts = Vec::new();
        let mut has_type_meta = false;
        if let Some(t) = self.raw_type(full_name, raw) {
            self.collect(full_name, t, raw, true, &mut fields, &mut parts, &mut has_type_meta);
        }
        parts.sort_by_key(|(number, _)| *number);
        let index = |i: usize| u16::try_from(i).expect("no struct has 65,536 fields");
        let by_name = table(fields.iter().map(|f| f.json));
        let always = (0..fields.len()).filter(|i| fields[*i].always_present()).map(index).collect();
        let form = match full_name.rsplit('.').next() {
            Some("JSONSchemaPropsOrBool") => Form::OrBool,
            Some("JSONSchemaPropsOrArray") => Form::OrArray,
            Some("JSONSchemaPropsOrStringArray") => Form::OrStringArray,
            _ => Form::Object,
        };
        Type {
            id,
            full_name,
            fields: fields.into(),
            parts: parts.into(),
            form,
            by_name,
            always,
            has_type_meta,
        }
    }

    fn collect(
        &self,
        full_name: &str,
        t: &RawType<'static>,
        raw: &RawCatalogue<'static>,
        own: bool,
        fields: &mut Vec<Field>,
        parts: &mut Vec<(u32, Part)>,
        has_type_meta: &mut bool,
    ) {
        for f in &t.fields {
            if !self.serves(&f.releases) && !full_name.contains(".apiregistration.v1.") {
                continue;
            }
            if f.inline {
                let target = self.target(if f.ref_.is_empty() { embedded(full_name) } else { f.ref_ });
                let meta = target.ends_with(".TypeMeta") && f.pb == 0;
                *has_type_meta |= meta && own;
                let Some(inner) = self.raw_type(target, raw) else { continue };
                let before = fields.len();
                // An embedded struct's fields are its own message's parts, not this one's; where it has no number,
                // they are in no message at all: `kind` and `apiVersion`, which the envelope carries.
                self.collect(target, inner, raw, false, fields, &mut Vec::new(), has_type_meta);
                for field in &mut fields[before..] {
                    field.type_meta |= meta;
                }
                if let Some(id) = self.by_name.get(target).filter(|_| own && f.pb != 0) {
                    parts.push((f.pb, Part::Embedded(*id)));
                }
                continue;
            }
            let index = u16::try_from(fields.len()).unwrap_or(u16::MAX);
            fields.push(self.field(full_name, f, raw));
            if f.pb != 0 && own {
                parts.push((f.pb, Part::Field(index)));
            }
        }
    }

    fn field(&self, full_name: &str, f: &RawField<'static>, raw: &RawCatalogue<'static>) -> Field {
        let element = f.list.as_ref().or(f.map.as_ref());
        let values = [f.values, element.map_or("", |e| e.values)]
            .into_iter()
            .find_map(|name| {
                let (package, name) = name.rsplit_once('.')?;
                raw.packages.get(package)?.values.get(name).cloned()
            })
            .map(leak)
            .unwrap_or_default();
        let strategies = || f.patch_strategy.split(',');
        Field {
            json: f.json,
            number: f.pb,
            shape: self.shape(f),
            pointer: f.ptr,
            omitempty: f.omitempty,
            omitzero: f.omitzero && self.release > Release::V1_20,
            optional: f.optional || (f.omitempty && !f.required),
            type_meta: full_name.ends_with(".TypeMeta"),
            patch_merge: strategies().any(|s| s == "merge"),
            patch_retain_keys: strategies().any(|s| s == "retainKeys"),
            patch_merge_key: f.patch_merge_key,
            patch_strategy: f.patch_strategy,
            list_type: match f.list_type {
                "set" => Some(ListType::Set),
                "map" => Some(ListType::Map),
                "atomic" => Some(ListType::Atomic),
                _ => None,
            },
            list_map_keys: leak(f.list_map_keys.clone()),
            atomic: f.map_type == "atomic" || f.struct_type == "atomic",
            wrapped: f.json == "verbs" && full_name.ends_with(".meta.v1.APIResource"),
            default: f.default.as_deref().and_then(|text| default(text, raw)),
            values,
        }
    }

    fn shape(&self, f: &RawField<'static>) -> Shape {
        // `any` stands for an alias of a type in another package here.
        if f.type_ == "any" && f.json == "reinvocationPolicy" {
            return Shape::Scalar(Scalar::String);
        }
        let element = |e: &RawElement<'static>| {
            if e.list.is_some() { Element::StringList } else { self.element(e.type_, e.ref_) }
        };
        match (&f.list, &f.map) {
            (Some(list), _) => Shape::List(element(list)),
            (_, Some(map)) => Shape::Map(element(map)),
            _ => self.element(f.type_, f.ref_).into(),
        }
    }

    fn element(&self, type_: &str, target: &str) -> Element {
        if !target.is_empty()
            && !target.ends_with(".JSON")
            && let Some(id) = self.by_name.get(self.target(target))
        {
            return Element::Struct(*id);
        }
        Element::Scalar(match type_ {
            "string" => Scalar::String,
            "bool" => Scalar::Bool,
            "int32" => Scalar::Int32,
            "int64" => Scalar::Int64,
            "double" => Scalar::Double,
            "bytes" => Scalar::Bytes,
            "Time" => Scalar::Time,
            "MicroTime" => Scalar::MicroTime,
            "Duration" => Scalar::Duration,
            "Quantity" => Scalar::Quantity,
            "IntOrString" => Scalar::IntOrString,
            "RawExtension" => Scalar::RawExtension,
            "FieldsV1" => Scalar::FieldsV1,
            _ => Scalar::Json,
        })
    }
}

/// The type that an embedded alias stands for; `""` where there is none.
fn embedded(full_name: &str) -> &'static str {
    if full_name.ends_with(".NamedRuleWithOperations") {
        "io.k8s.api.admissionregistration.v1.RuleWithOperations"
    } else {
        ""
    }
}

/// A default is JSON, or `ref(Constant)`.
fn default(text: &str, raw: &RawCatalogue<'static>) -> Option<Value> {
    let Some(constant) = text.strip_prefix("ref(").and_then(|t| t.strip_suffix(')')) else {
        return serde_json::from_str(text).ok();
    };
    // Constants are not in the data by name; their names end with the value's words.
    let core = raw.packages.get("io.k8s.api.core.v1")?;
    let mut values =
        core.values.iter().filter(|(name, _)| constant.starts_with(*name)).flat_map(|(_, v)| v.iter());
    match constant {
        "AzureDataDiskCachingReadWrite" => Some(Value::from("ReadWrite")),
        "AzureSharedBlobDisk" => Some(Value::from("Shared")),
        _ => values.find(|v| constant.ends_with(**v)).map(|v| Value::from(*v)),
    }
}

#[cfg(test)]
mod tests {
    use pilothouse_apimachinery::version::NEWEST;

    use super::*;

    #[test]
    fn reads_both_releases() {
        for release in [Release::V1_20, NEWEST] {
            let c = Catalogue::of(release);
            let pod = c.kind("", "v1", "Pod").unwrap();
            assert_eq!(pod.name(), "Pod");
            assert_eq!(pod.go_name(), "v1.Pod");
            let Shape::Struct(spec) = pod.field("spec").unwrap().shape else { panic!("spec is a struct") };
            let containers = c.get(spec).field("containers").unwrap();
            assert!(containers.patch_merge && containers.patch_merge_key == "name");
            assert_eq!(containers.list_map_keys, ["name"]);
            assert!(!containers.omitempty && containers.always_present());
            // An embedded struct's fields are the outer's in JSON and a message in protobuf.
            let volume = c.find("io.k8s.api.core.v1.Volume").unwrap();
            assert!(volume.field("hostPath").is_some());
            assert!(matches!(volume.parts[1], (2, Part::Embedded(_))));
            assert!(c.kind("apiregistration.k8s.io", "v1", "APIService").unwrap().field("spec").is_some());
        }
        let meta = |r| {
            Catalogue::of(r).meta("ObjectMeta").unwrap().field("creationTimestamp").unwrap().always_present()
        };
        assert!(meta(Release::V1_20) && !meta(NEWEST));
    }

    #[test]
    fn releases_differ() {
        let old = Catalogue::of(Release::V1_20);
        let new = Catalogue::of(NEWEST);
        assert!(old.kind("batch", "v1", "CronJob").is_none() && new.kind("batch", "v1", "CronJob").is_some());
        assert!(old.kind("extensions", "v1beta1", "Ingress").is_some());
        assert!(old.find("io.k8s.api.core.v1.PodSpec").unwrap().field("os").is_none());
        assert!(new.find("io.k8s.api.core.v1.PodSpec").unwrap().field("os").is_some());
    }

    #[test]
    fn defaults_and_values() {
        let c = Catalogue::of(Release::V1_20);
        let port = c.find("io.k8s.api.core.v1.ContainerPort").unwrap();
        assert_eq!(port.field("protocol").unwrap().default, Some(Value::from("TCP")));
        assert_eq!(port.field("protocol").unwrap().values, ["SCTP", "TCP", "UDP"]);
        let disk = c.find("io.k8s.api.core.v1.AzureDiskVolumeSource").unwrap();
        assert_eq!(disk.field("kind").unwrap().default, Some(Value::from("Shared")));
    }

    #[test]
    fn no_struct_has_more_than_128_fields() {
        // The decoder marks the fields it has seen in 128 bits.
        for release in [Release::V1_20, NEWEST] {
            assert!(Catalogue::of(release).types().iter().all(|t| t.fields.len() <= 128));
        }
    }

    #[test]
    fn renamed_types_are_found() {
        for release in [Release::V1_20, NEWEST] {
            let c = Catalogue::of(release);
            let probe = c.find("io.k8s.api.core.v1.Probe").unwrap();
            assert!(probe.field("httpGet").is_some() && matches!(probe.parts[0], (1, Part::Embedded(_))));
            let lifecycle = c.find("io.k8s.api.core.v1.Lifecycle").unwrap();
            let Shape::Struct(id) = lifecycle.field("preStop").unwrap().shape else {
                panic!("preStop is a struct")
            };
            assert!(c.get(id).field("exec").is_some());
        }
    }

    #[test]
    fn every_reference_is_found() {
        let raw: RawCatalogue<'static> = serde_json::from_str(TEXT).unwrap();
        for release in [Release::V1_20, NEWEST] {
            let builder = Builder::new(release, &raw);
            for name in &builder.names {
                let type_ = builder.raw_type(name, &raw).unwrap();
                for f in type_.fields.iter().filter(|f| builder.serves(&f.releases)) {
                    let elements = [f.list.as_ref(), f.map.as_ref()].into_iter().flatten().map(|e| e.ref_);
                    for target in elements.chain([f.ref_]).filter(|t| !t.is_empty() && !t.ends_with(".JSON"))
                    {
                        assert!(
                            builder.by_name.contains_key(builder.target(target)),
                            "{name}.{}: {target}",
                            f.json
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn packages() {
        for group in
            ["", "apps", "rbac.authorization.k8s.io", "apiextensions.k8s.io", "flowcontrol.apiserver.k8s.io"]
        {
            assert_eq!(group_of(&package(group, "v1")), Some(group));
        }
    }
}
