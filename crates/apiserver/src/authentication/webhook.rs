//! Authentication by a webhook: a TokenReview for each token, answers kept for a while.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::time::Duration;

use parking_lot::Mutex;
use pilothouse_apimachinery::json::json;
use sha2::{Digest, Sha256};
use tokio::time::Instant;

use super::TokenResult;
use crate::json::{bool_at, get, str_at, texts};
use crate::outbound::kubeconfig::Remote;
use crate::request::UserInfo;

/// At most so many answers are kept.
const KEPT: usize = 4096;

/// The webhook.
pub struct Webhook {
    remote: Remote,
    ttl: Duration,
    answers: Mutex<HashMap<[u8; 32], (Instant, TokenResult)>>,
}

impl Webhook {
    /// The webhook that a kubeconfig names.
    pub fn new(file: &Path, ttl: Duration) -> Result<Webhook, String> {
        Ok(Webhook { remote: Remote::load(file)?, ttl, answers: Mutex::default() })
    }

    /// Whose a token is.
    pub async fn authenticate(&self, token: &str, audiences: &[String]) -> TokenResult {
        let key: [u8; 32] = Sha256::digest(format!("{token}\0{}", audiences.join("\0"))).into();
        let now = Instant::now();
        if let Some((until, answer)) = self.answers.lock().get(&key)
            && *until > now
        {
            return answer.clone();
        }
        let review = json!({
            "apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview",
            "spec": {"token": token, "audiences": audiences},
        });
        let answer = self.remote.review(&review, Duration::from_secs(30)).await.map_err(|e| e.to_string())?;
        let status = &answer["status"];
        let result = if bool_at(status, &["authenticated"]) {
            let u = get(status, &["user"]);
            let extra: BTreeMap<_, _> = get(u, &["extra"])
                .as_object()
                .map(|m| m.keys().map(|k| (k.to_string(), texts(u, &["extra", k]))).collect())
                .unwrap_or_default();
            let user = UserInfo {
                name: str_at(u, &["username"]).into(),
                uid: str_at(u, &["uid"]).into(),
                groups: texts(u, &["groups"]),
                extra,
            };
            let given = texts(status, &["audiences"]);
            let shared =
                audiences.iter().filter(|a| given.is_empty() || given.contains(a)).cloned().collect();
            Ok(Some((user, shared)))
        } else {
            match str_at(status, &["error"]) {
                "" => Ok(None),
                why => Err(why.to_string()),
            }
        };
        let mut answers = self.answers.lock();
        if answers.len() >= KEPT {
            answers.retain(|_, (until, _)| *until > now);
        }
        if answers.len() < KEPT {
            answers.insert(key, (now + self.ttl, result.clone()));
        }
        result
    }
}
