//! `metav1.Status`, the form of every error that the API gives, and the errors themselves. Codes, reasons and texts
//! are those of `k8s.io/apimachinery/pkg/api/errors`; scripts and client libraries match on them.

use serde::{Deserialize, Serialize};

use crate::field::ErrorList;

/// One cause of a failure.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct Cause {
    /// Machine-readable reason.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// Text for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// Path of the field.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub field: String,
}

/// What the failure is about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "camelCase")]
pub struct Details {
    /// Object's name.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// API group.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub group: String,
    /// Kind or resource: Kubernetes puts now one, now the other here.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub kind: String,
    /// Object's uid.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub uid: String,
    /// Causes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub causes: Vec<Cause>,
    /// When to try again, in seconds; also sent as `Retry-After`.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub retry_after_seconds: u32,
}

fn is_zero(n: &u32) -> bool {
    *n == 0
}

/// A failure (or, for deletions, a success) as clients see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Status {
    /// Always `Status`.
    pub kind: String,
    /// Always `v1`.
    #[serde(rename = "apiVersion")]
    pub api_version: String,
    /// List metadata: empty, but for the token of an expired list.
    #[serde(default)]
    pub metadata: crate::json::Map,
    /// `Success` or `Failure`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub status: String,
    /// Text for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// Machine-readable reason.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// What it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub details: Option<Details>,
    /// HTTP status code.
    #[serde(default, skip_serializing_if = "is_zero16")]
    pub code: u16,
}

fn is_zero16(n: &u16) -> bool {
    *n == 0
}

/// The result of an API operation.
pub type Result<T> = std::result::Result<T, Status>;

/// A resource as errors name it: `pods`, `deployments.apps`.
fn qualified(group: &str, resource: &str) -> String {
    if group.is_empty() { resource.to_string() } else { format!("{resource}.{group}") }
}

impl Status {
    /// A failure.
    pub fn failure(code: u16, reason: &str, message: impl Into<String>) -> Status {
        Status {
            kind: "Status".into(),
            api_version: "v1".into(),
            metadata: Default::default(),
            status: "Failure".into(),
            message: message.into(),
            reason: reason.into(),
            details: None,
            code,
        }
    }

    /// The success that deletions answer.
    pub fn success(details: Option<Details>) -> Status {
        Status { status: "Success".into(), details, ..Status::failure(0, "", "") }
    }

    /// Sets what the failure is about.
    #[must_use]
    pub fn about(mut self, group: &str, kind: &str, name: &str) -> Status {
        let d = self.details.get_or_insert_default();
        (d.group, d.kind, d.name) = (group.into(), kind.into(), name.into());
        self
    }

    /// Adds a cause.
    #[must_use]
    pub fn cause(mut self, reason: &str, message: &str, field: &str) -> Status {
        self.details.get_or_insert_default().causes.push(Cause {
            reason: reason.into(),
            message: message.into(),
            field: field.into(),
        });
        self
    }

    /// Says when to try again.
    #[must_use]
    pub fn retry_after(mut self, seconds: u32) -> Status {
        self.details.get_or_insert_default().retry_after_seconds = seconds;
        self
    }

    /// 404: no such object.
    pub fn not_found(group: &str, resource: &str, name: &str) -> Status {
        Self::failure(404, "NotFound", format!("{} {name:?} not found", qualified(group, resource)))
            .about(group, resource, name)
    }

    /// 404: no such path.
    pub fn no_such_path() -> Status {
        let mut s = Self::failure(404, "NotFound", "the server could not find the requested resource");
        s.details = Some(Details::default());
        s
    }

    /// 409: an object of that name exists.
    pub fn already_exists(group: &str, resource: &str, name: &str) -> Status {
        Self::failure(409, "AlreadyExists", format!("{} {name:?} already exists", qualified(group, resource)))
            .about(group, resource, name)
    }

    /// 409: the object was changed meanwhile, or some such reason.
    pub fn conflict(group: &str, resource: &str, name: &str, why: &str) -> Status {
        Self::failure(
            409,
            "Conflict",
            format!("Operation cannot be fulfilled on {} {name:?}: {why}", qualified(group, resource)),
        )
        .about(group, resource, name)
    }

    /// 409: somebody else wrote the object first.
    pub fn modified(group: &str, resource: &str, name: &str) -> Status {
        Self::conflict(
            group,
            resource,
            name,
            "the object has been modified; please apply your changes to the latest version and try again",
        )
    }

    /// 403 by admission: `<resource> "<name>" is forbidden: <why>`.
    pub fn forbidden(group: &str, resource: &str, name: &str, why: &str) -> Status {
        let what = qualified(group, resource);
        let message = if what.is_empty() {
            format!("forbidden: {why}")
        } else if name.is_empty() {
            format!("{what} is forbidden: {why}")
        } else {
            format!("{what} {name:?} is forbidden: {why}")
        };
        Self::failure(403, "Forbidden", message).about(group, resource, name)
    }

    /// 422: validation found faults. `kind` is a kind here, not a resource.
    pub fn invalid(group: &str, kind: &str, name: &str, errors: &ErrorList) -> Status {
        // The message names each fault once; the causes name it as often as it was found.
        let mut texts: Vec<String> = Vec::with_capacity(errors.len());
        for text in errors.iter().map(ToString::to_string) {
            if !texts.contains(&text) {
                texts.push(text);
            }
        }
        let list = match texts.as_slice() {
            [one] => one.clone(),
            many => format!("[{}]", many.join(", ")),
        };
        let mut s =
            Self::failure(422, "Invalid", format!("{} {name:?} is invalid: {list}", qualified(group, kind)))
                .about(group, kind, name);
        for e in errors {
            s = s.cause(e.error_type.reason(), &e.body, &e.field);
        }
        s
    }

    /// 400.
    pub fn bad_request(message: impl Into<String>) -> Status {
        Self::failure(400, "BadRequest", message)
    }

    /// 401.
    pub fn unauthorized() -> Status {
        Self::failure(401, "Unauthorized", "Unauthorized")
    }

    /// 405.
    pub fn method_not_supported(group: &str, resource: &str, verb: &str) -> Status {
        Self::failure(
            405,
            "MethodNotAllowed",
            format!("{verb} is not supported on resources of kind {:?}", qualified(group, resource)),
        )
        .about(group, resource, "")
    }

    /// 410: the revision asked for is gone.
    pub fn expired(message: impl Into<String>) -> Status {
        Self::failure(410, "Expired", message)
    }

    /// 413.
    pub fn too_large(message: impl Into<String>) -> Status {
        Self::failure(413, "RequestEntityTooLarge", format!("Request entity too large: {}", message.into()))
    }

    /// 415.
    pub fn unsupported_media_type(message: impl Into<String>) -> Status {
        Self::failure(415, "UnsupportedMediaType", message)
    }

    /// 429.
    pub fn too_many_requests(message: impl Into<String>, retry_after: u32) -> Status {
        Self::failure(429, "TooManyRequests", message).retry_after(retry_after)
    }

    /// 500.
    pub fn internal(message: impl std::fmt::Display) -> Status {
        let mut s = Self::failure(500, "InternalError", format!("Internal error occurred: {message}"));
        s.details = Some(Details {
            causes: vec![Cause { message: message.to_string(), ..Default::default() }],
            ..Default::default()
        });
        s
    }

    /// 503.
    pub fn unavailable(message: impl Into<String>) -> Status {
        Self::failure(503, "ServiceUnavailable", message)
    }

    /// 504.
    pub fn timeout(message: impl Into<String>, retry_after: u32) -> Status {
        Self::failure(504, "Timeout", format!("Timeout: {}", message.into())).retry_after(retry_after)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::field::{self, Path};

    #[test]
    fn a_fault_is_named_once() {
        let fault = field::required(&Path::new("spec.x"), "");
        let status = Status::invalid("apps", "Deployment", "a", &vec![fault.clone(), fault]);
        assert_eq!(status.message, "Deployment.apps \"a\" is invalid: spec.x: Required value");
        assert_eq!(status.details.map(|d| d.causes.len()), Some(2));
    }
}
