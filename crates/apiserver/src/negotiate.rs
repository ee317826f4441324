//! Which form a client wants its answer in: media type, table, metadata only.

use pilothouse_api::decode::request;
use pilothouse_apimachinery::status::{Details, Status};

/// A media type that objects can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Media {
    /// `application/json`.
    Json,
    /// `application/yaml`.
    Yaml,
    /// `application/vnd.kubernetes.protobuf`.
    Protobuf,
}

impl Media {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Media::Json => "application/json",
            Media::Yaml => "application/yaml",
            Media::Protobuf => "application/vnd.kubernetes.protobuf",
        }
    }

    /// The same for the decoder.
    pub fn decoder(self) -> request::Media {
        match self {
            Media::Json => request::Media::Json,
            Media::Yaml => request::Media::Yaml,
            Media::Protobuf => request::Media::Protobuf,
        }
    }
}

/// All media types, in the order in which Kubernetes lists them.
pub const ALL: &[Media] = &[Media::Json, Media::Yaml, Media::Protobuf];
/// Those of custom resources.
pub const WITHOUT_PROTOBUF: &[Media] = &[Media::Json, Media::Yaml];

/// What is made of an object before it is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Shape {
    /// Itself.
    Object,
    /// A table; `true` for `meta.k8s.io/v1`, `false` for `v1beta1`.
    Table(bool),
    /// Its metadata; `true` for `meta.k8s.io/v1`, `false` for `v1beta1`.
    Metadata(bool),
    /// A list of metadata; likewise.
    MetadataList(bool),
}

impl Shape {
    /// `meta.k8s.io/v1` or `meta.k8s.io/v1beta1`, for shapes other than the object itself.
    pub fn meta_version(self) -> &'static str {
        match self {
            Shape::Table(false) | Shape::Metadata(false) | Shape::MetadataList(false) => {
                "meta.k8s.io/v1beta1"
            }
            _ => "meta.k8s.io/v1",
        }
    }
}

/// The form of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Negotiated {
    /// Media type.
    pub media: Media,
    /// Shape.
    pub shape: Shape,
    /// Whether the client asked for it indented.
    pub pretty: bool,
}

/// One clause of an `Accept` header.
#[derive(Debug, PartialEq)]
struct Clause<'a> {
    type_: &'a str,
    subtype: &'a str,
    q: f32,
    params: Vec<(&'a str, &'a str)>,
}

fn clauses(header: &str) -> Vec<Clause<'_>> {
    let mut out: Vec<Clause<'_>> = header
        .split(',')
        .map(|part| {
            let mut pieces = part.split(';');
            let media = pieces.next().unwrap_or("").trim();
            let (type_, subtype) = match media.split_once('/') {
                Some((t, s)) => (t.trim(), s.trim()),
                None if media == "*" => ("*", "*"),
                None => (media, ""),
            };
            let mut q = 1.0;
            let mut params = Vec::new();
            for p in pieces {
                if let Some((k, v)) = p.split_once('=') {
                    let (k, v) = (k.trim(), v.trim());
                    if k == "q" { q = v.parse().unwrap_or(1.0) } else { params.push((k, v)) }
                }
            }
            Clause { type_, subtype, q, params }
        })
        .collect();
    out.sort_by(|a, b| {
        b.q.total_cmp(&a.q)
            .then((a.type_ == "*").cmp(&(b.type_ == "*")))
            .then((a.subtype == "*").cmp(&(b.subtype == "*")))
    });
    out
}

/// Whether a route that produces `accepted` may be asked at all: go-restful's own check, which ignores parameters and
/// knows no `application/*`. Its answer is [`not_acceptable_route`].
pub fn route_accepts(accept: &str, accepted: &[Media]) -> bool {
    accept.trim().is_empty()
        || accept.split(',').any(|part| {
            let media = part.split(';').next().unwrap_or("").trim();
            media == "*/*" || accepted.iter().any(|m| m.name() == media)
        })
}

/// The 406 of a route.
pub fn not_acceptable_route() -> Status {
    route_error(406, "NotAcceptable", "406: Not Acceptable")
}

/// The 415 of a route.
pub fn unsupported_route() -> Status {
    route_error(415, "UnsupportedMediaType", "415: Unsupported Media Type")
}

/// The 405 of a route.
pub fn method_not_allowed() -> Status {
    route_error(405, "MethodNotAllowed", "the server does not allow this method on the requested resource")
}

fn route_error(code: u16, reason: &str, message: &str) -> Status {
    let mut status = Status::failure(code, reason, message);
    status.details = Some(Details::default());
    status
}

/// The 406 of a handler, with what it can give.
pub fn not_acceptable(accepted: &[Media]) -> Status {
    let list: Vec<&str> = accepted.iter().map(|m| m.name()).collect();
    Status::failure(
        406,
        "NotAcceptable",
        format!("only the following media types are accepted: {}", list.join(", ")),
    )
}

/// Picks the form of an answer. `transforms` says whether the endpoint knows tables and metadata.
pub fn negotiate(accept: &str, accepted: &[Media], transforms: bool) -> Result<Negotiated, Status> {
    if accept.trim().is_empty() {
        let media = accepted.first().copied().unwrap_or(Media::Json);
        return Ok(Negotiated { media, shape: Shape::Object, pretty: false });
    }
    for clause in clauses(accept) {
        for media in accepted {
            let (type_, subtype) = media.name().split_once('/').unwrap_or((media.name(), ""));
            let fits = (clause.type_ == type_ && (clause.subtype == subtype || clause.subtype == "*"))
                || (clause.type_ == "*" && clause.subtype == "*");
            if fits && let Some(found) = with_params(*media, &clause.params, transforms) {
                return Ok(found);
            }
        }
    }
    Err(not_acceptable(accepted))
}

fn with_params(media: Media, params: &[(&str, &str)], transforms: bool) -> Option<Negotiated> {
    let param = |name: &str| params.iter().find(|(k, _)| *k == name).map_or("", |(_, v)| *v);
    let stream = param("stream");
    if !stream.is_empty() && (stream != "watch" || media == Media::Yaml) {
        return None;
    }
    let (kind, group, version) = (param("as"), param("g"), param("v"));
    let shape = if kind.is_empty() && group.is_empty() && version.is_empty() {
        Shape::Object
    } else {
        let v1 = match (group, version) {
            ("meta.k8s.io", "v1") => true,
            ("meta.k8s.io", "v1beta1") => false,
            _ => return None,
        };
        match kind {
            _ if !transforms => return None,
            "Table" if media != Media::Protobuf => Shape::Table(v1),
            "PartialObjectMetadata" => Shape::Metadata(v1),
            "PartialObjectMetadataList" => Shape::MetadataList(v1),
            _ => return None,
        }
    };
    Some(Negotiated { media, shape, pretty: param("pretty") == "1" })
}

/// Whether JSON is indented for this client: on demand, and for browsers and command-line tools.
pub fn wants_pretty(query: Option<&str>, user_agent: &str) -> bool {
    match query {
        Some(q) if !q.is_empty() => matches!(q, "1" | "t" | "T" | "true" | "TRUE" | "True"),
        _ => ["curl", "Wget", "Mozilla/5.0"].iter().any(|p| user_agent.starts_with(p)),
    }
}

/// The media type of a request's body; empty counts as JSON.
pub fn body_media(content_type: &str, accepted: &[Media]) -> Result<Media, Status> {
    let media = content_type.split(';').next().unwrap_or("").trim();
    if media.is_empty() {
        return Ok(Media::Json);
    }
    accepted.iter().find(|m| m.name() == media).copied().ok_or_else(|| {
        let list: Vec<&str> = accepted.iter().map(|m| m.name()).collect();
        Status::unsupported_media_type(unknown_format(&list))
    })
}

/// The text of a 415.
pub fn unknown_format(accepted: &[&str]) -> String {
    format!(
        "the body of the request was in an unknown format - accepted media types include: {}",
        accepted.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pick(accept: &str) -> Option<(Media, Shape)> {
        negotiate(accept, ALL, true).ok().map(|n| (n.media, n.shape))
    }

    #[test]
    fn picks_what_the_client_prefers() {
        use Media::*;
        use Shape::*;
        for (accept, want) in [
            ("", Some((Json, Object))),
            ("*/*", Some((Json, Object))),
            ("application/*", Some((Json, Object))),
            ("application/json, */*", Some((Json, Object))),
            ("application/vnd.kubernetes.protobuf, */*", Some((Protobuf, Object))),
            ("application/vnd.kubernetes.protobuf,application/json", Some((Protobuf, Object))),
            ("application/json;q=0.5, application/yaml", Some((Yaml, Object))),
            ("*/*, application/yaml", Some((Yaml, Object))),
            ("text/html", None),
            ("text/html, application/json;q=0.1", Some((Json, Object))),
            (
                "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json",
                Some((Json, Table(true))),
            ),
            ("application/json;as=Table;v=v1beta1;g=meta.k8s.io", Some((Json, Table(false)))),
            ("application/json;as=Table;v=v9;g=meta.k8s.io,application/json", Some((Json, Object))),
            ("application/json;as=Table;v=v9;g=meta.k8s.io", None),
            ("application/vnd.kubernetes.protobuf;as=Table;v=v1;g=meta.k8s.io", None),
            (
                "application/vnd.kubernetes.protobuf;as=PartialObjectMetadata;v=v1;g=meta.k8s.io",
                Some((Protobuf, Metadata(true))),
            ),
            (
                "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io",
                Some((Json, MetadataList(true))),
            ),
            ("application/json;stream=watch", Some((Json, Object))),
            ("application/json;stream=other", None),
        ] {
            assert_eq!(pick(accept), want, "{accept}");
        }
        assert!(negotiate("application/json;as=Table;v=v1;g=meta.k8s.io", ALL, false).is_err());
        assert_eq!(
            not_acceptable(ALL).message,
            "only the following media types are accepted: application/json, application/yaml, application/vnd.kubernetes.protobuf"
        );
    }

    #[test]
    fn routes_check_first() {
        assert!(route_accepts("", ALL) && route_accepts("a/b, */*;q=0.1", ALL));
        assert!(route_accepts("application/json;as=Nonsense", ALL));
        assert!(!route_accepts("text/html", ALL) && !route_accepts("application/*", ALL));
        assert!(!route_accepts("application/vnd.kubernetes.protobuf", WITHOUT_PROTOBUF));
    }

    #[test]
    fn prettiness_and_bodies() {
        assert!(wants_pretty(None, "curl/7.64") && !wants_pretty(Some("0"), "curl/7.64"));
        assert!(wants_pretty(Some("true"), "kubectl") && !wants_pretty(None, "kubectl"));
        assert_eq!(body_media("", ALL).unwrap(), Media::Json);
        assert_eq!(body_media("application/yaml; charset=utf-8", ALL).unwrap(), Media::Yaml);
        assert_eq!(
            body_media("text/plain", WITHOUT_PROTOBUF).unwrap_err().message,
            "the body of the request was in an unknown format - accepted media types include: application/json, application/yaml"
        );
    }
}
