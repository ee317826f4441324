//! `TokenReview` and `SelfSubjectReview`: whose token is it, and who am I?

use std::sync::Arc;

use http::StatusCode;
use pilothouse_apimachinery::json::{Value, json};
use pilothouse_apimachinery::status::Status;

use super::body::{self, Gvk};
use crate::json::{str_at, texts};
use crate::request::{RequestBody, RequestContext, Response, UserInfo};
use crate::special::SpecialRest;
use crate::state::ServerState;

const GROUP: &str = "authentication.k8s.io";

fn user_info(u: &UserInfo) -> Value {
    let mut v = json!({"username": u.name});
    if !u.uid.is_empty() {
        v["uid"] = json!(u.uid);
    }
    if !u.groups.is_empty() {
        v["groups"] = json!(u.groups);
    }
    if !u.extra.is_empty() {
        v["extra"] = json!(u.extra);
    }
    v
}

async fn token_review(
    state: Arc<ServerState>,
    context: Arc<RequestContext>,
    body: RequestBody,
) -> Result<Response, Status> {
    let version = if context.info.version == "v1beta1" { "v1beta1" } else { "v1" };
    let kind = Gvk { group: GROUP, version, kind: "TokenReview" };
    let (gvk, mut object) = body::read(&context, body, state.release, &[kind]).await?;
    let token = str_at(&object, &["spec", "token"]);
    if token.is_empty() {
        return Err(Status::bad_request("token is required for TokenReview in authentication"));
    }
    let audiences = texts(&object, &["spec", "audiences"]);
    object["status"] = match state.authenticator.review_token(token, &audiences).await {
        Ok((user, audiences)) => {
            let mut status = json!({"authenticated": true, "user": user_info(&user)});
            if !audiences.is_empty() {
                status["audiences"] = json!(audiences);
            }
            status
        }
        Err(why) => json!({"error": why}),
    };
    body::answer(&context, StatusCode::CREATED, state.release, gvk, object)
}

async fn self_review(
    state: Arc<ServerState>,
    context: Arc<RequestContext>,
    body: RequestBody,
) -> Result<Response, Status> {
    let kind = Gvk { group: GROUP, version: "v1", kind: "SelfSubjectReview" };
    let (gvk, mut object) = body::read(&context, body, state.release, &[kind]).await?;
    object["status"] = json!({"userInfo": user_info(&context.user)});
    body::answer(&context, StatusCode::CREATED, state.release, gvk, object)
}

/// Registers the handlers.
pub fn register(special: &mut SpecialRest) {
    special.add(GROUP, "tokenreviews", "", "create", token_review);
    special.add(GROUP, "selfsubjectreviews", "", "create", self_review);
}
