//! What the kubelet writes to the API server of pods.

use async_trait::async_trait;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Api, Client};
use serde_json::Value;

/// Why a write failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ApiError {
    /// There is no such pod.
    #[error("not found")]
    NotFound,
    /// Another pod has the name, or it exists already.
    #[error("{0}")]
    Conflict(String),
    /// The server refuses it; trying again does not help.
    #[error("{0}")]
    Refused(String),
    /// The server was not reached or failed.
    #[error("{0}")]
    Failed(String),
}

impl From<kube::Error> for ApiError {
    fn from(e: kube::Error) -> ApiError {
        match e {
            kube::Error::Api(s) => match s.code {
                404 => ApiError::NotFound,
                409 => ApiError::Conflict(s.message.clone()),
                400 | 403 | 405 | 413 | 415 | 422 => ApiError::Refused(s.message.clone()),
                _ => ApiError::Failed(s.message.clone()),
            },
            other => ApiError::Failed(other.to_string()),
        }
    }
}

/// The writes.
#[async_trait]
pub trait PodApi: Send + Sync {
    /// Patches a pod's status (strategic merge); the pod as it then is.
    async fn patch_status(&self, namespace: &str, name: &str, patch: &Value) -> Result<Pod, ApiError>;
    /// Deletes a pod at once; only the one with that uid.
    async fn delete(&self, namespace: &str, name: &str, uid: &str) -> Result<(), ApiError>;
    /// Makes a (mirror) pod.
    async fn create(&self, pod: &Pod) -> Result<Pod, ApiError>;
}

/// Writes to the server.
pub struct KubeApi(pub Client);

#[async_trait]
impl PodApi for KubeApi {
    async fn patch_status(&self, namespace: &str, name: &str, patch: &Value) -> Result<Pod, ApiError> {
        let api: Api<Pod> = Api::namespaced(self.0.clone(), namespace);
        Ok(api.patch_status(name, &PatchParams::default(), &Patch::Strategic(patch)).await?)
    }

    async fn delete(&self, namespace: &str, name: &str, uid: &str) -> Result<(), ApiError> {
        let api: Api<Pod> = Api::namespaced(self.0.clone(), namespace);
        let params = DeleteParams {
            grace_period_seconds: Some(0),
            preconditions: Some(Preconditions { uid: Some(uid.to_string()), resource_version: None }),
            ..Default::default()
        };
        api.delete(name, &params).await.map(drop).map_err(ApiError::from)
    }

    async fn create(&self, pod: &Pod) -> Result<Pod, ApiError> {
        let api: Api<Pod> =
            Api::namespaced(self.0.clone(), pod.metadata.namespace.as_deref().unwrap_or("default"));
        Ok(api.create(&PostParams::default(), pod).await?)
    }
}
