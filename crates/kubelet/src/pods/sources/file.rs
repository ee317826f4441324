//! Static pods: files in a folder, each with a pod (or a list of pods), YAML or JSON.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use k8s_openapi::api::core::v1::{Pod, Toleration};
use sha2::{Digest, Sha256};

use super::defaults;
use crate::pod::{CONFIG_HASH, CONFIG_SEEN, CONFIG_SOURCE, PodExt};

/// Reads a folder (or one file) again and again and tells what changed.
pub struct FileSource {
    path: PathBuf,
    node: String,
    known: BTreeMap<PathBuf, Known>,
}

struct Known {
    modified: Option<SystemTime>,
    length: u64,
    pods: Vec<Arc<Pod>>,
}

impl FileSource {
    /// The pods in `path` for this node.
    pub fn new(path: PathBuf, node: String) -> FileSource {
        FileSource { path, node, known: BTreeMap::new() }
    }

    /// The pods as they are now. A file that has not changed is not read again; one that is no pod is passed over
    /// with a warning in the log.
    pub fn read(&mut self) -> Vec<Arc<Pod>> {
        let files = files(&self.path);
        self.known.retain(|p, _| files.contains(p));
        for file in files {
            let Ok(meta) = std::fs::metadata(&file) else { continue };
            let (modified, length) = (meta.modified().ok(), meta.len());
            if self.known.get(&file).is_some_and(|k| k.modified == modified && k.length == length) {
                continue;
            }
            let pods = match std::fs::read_to_string(&file).map_err(|e| e.to_string()) {
                Ok(text) => parse(&text, &file, &self.node).unwrap_or_else(|e| {
                    tracing::warn!("Can't process manifest file {}: {e}", file.display());
                    Vec::new()
                }),
                Err(e) => {
                    tracing::warn!("Can't process manifest file {}: {e}", file.display());
                    continue;
                }
            };
            // A pod that is as it was keeps the time at which it was first seen.
            let old = self.known.get(&file).map(|k| k.pods.clone()).unwrap_or_default();
            let pods = pods
                .into_iter()
                .map(|p| old.iter().find(|o| o.uid() == p.uid()).cloned().unwrap_or_else(|| Arc::new(p)))
                .collect();
            self.known.insert(file, Known { modified, length, pods });
        }
        let mut seen = std::collections::HashSet::new();
        let all = self.known.values().flat_map(|k| k.pods.iter().cloned());
        all.filter(|p| seen.insert(p.full_name())).collect()
    }
}

fn files(path: &Path) -> Vec<PathBuf> {
    if path.is_file() {
        return vec![path.to_path_buf()];
    }
    let hidden = |p: &Path| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with('.'));
    let mut out: Vec<PathBuf> = std::fs::read_dir(path)
        .into_iter()
        .flatten()
        .flatten()
        .map(|e| e.path())
        .filter(|p| p.is_file() && !hidden(p))
        .collect();
    out.sort();
    out
}

/// The pods in a file's text.
pub fn parse(text: &str, file: &Path, node: &str) -> Result<Vec<Pod>, String> {
    let value: serde_json::Value = serde_yaml_ng::from_str(text).map_err(|e| e.to_string())?;
    let items = match value["kind"].as_str() {
        Some("Pod") => vec![value],
        Some("PodList" | "List") => value["items"].as_array().cloned().unwrap_or_default(),
        _ => return Err("invalid pod: it is no Pod".into()),
    };
    items
        .into_iter()
        .map(|v| {
            let source = v.to_string();
            // By way of the text: a pod is read from text elsewhere too, and each further way costs seconds of compiling.
            let pod: Pod = serde_json::from_str(&source).map_err(|e| format!("invalid pod: {e}"))?;
            complete(pod, &source, file, node)
        })
        .collect()
}

/// Gives a pod from a file what it needs to be one of this node.
fn complete(mut pod: Pod, source: &str, file: &Path, node: &str) -> Result<Pod, String> {
    let meta = &mut pod.metadata;
    let name =
        meta.name.clone().filter(|n| !n.is_empty()).ok_or("invalid pod: metadata.name: Required value")?;
    if pod.spec.as_ref().is_none_or(|s| s.containers.is_empty()) {
        return Err("invalid pod: spec.containers: Required value".into());
    }
    if meta.uid.as_deref().unwrap_or("").is_empty() {
        let mut hash = Sha256::new();
        hash.update(format!("host:{node}file:{}", file.display()));
        hash.update(source);
        // 32 digits, as a kubelet's uids of static pods have always been.
        let digits: String = hash.finalize().iter().take(16).map(|b| format!("{b:02x}")).collect();
        meta.uid = Some(digits);
    }
    let uid = meta.uid.clone().unwrap_or_default();
    meta.name = Some(format!("{}-{node}", name.to_lowercase()));
    if meta.namespace.as_deref().unwrap_or("").is_empty() {
        meta.namespace = Some("default".into());
    }
    let seen = jiff::Timestamp::now();
    let annotations = meta.annotations.get_or_insert_default();
    annotations.insert(CONFIG_HASH.into(), uid);
    annotations.insert(CONFIG_SOURCE.into(), "file".into());
    annotations.insert(CONFIG_SEEN.into(), seen.to_string());
    let spec = pod.spec.get_or_insert_default();
    spec.node_name = Some(node.to_string());
    // Nothing may drive a static pod from its node.
    let everything = Toleration {
        operator: Some("Exists".into()),
        effect: Some("NoExecute".into()),
        ..Default::default()
    };
    let tolerations = spec.tolerations.get_or_insert_default();
    if !tolerations.contains(&everything) {
        tolerations.push(everything);
    }
    pod.status = None;
    defaults::apply(&mut pod);
    Ok(pod)
}

#[cfg(test)]
mod tests {
    use super::*;

    const POD: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: St, namespace: ns}\nspec:\n  containers:\n  - {name: c, image: busybox}\n";

    #[test]
    fn a_file_becomes_a_pod_of_this_node() {
        let pods = parse(POD, Path::new("/m/a.yaml"), "node01").unwrap();
        let p = &pods[0];
        assert_eq!((p.name(), p.namespace(), p.uid().len()), ("st-node01", "ns", 32));
        assert!(p.is_static());
        assert_eq!(p.annotation(CONFIG_HASH), Some(p.uid()));
        assert_eq!(p.pod_spec().tolerations.as_ref().unwrap().len(), 1);
        let other = parse(&POD.replace("busybox", "nginx"), Path::new("/m/a.yaml"), "node01").unwrap();
        assert_ne!(other[0].uid(), p.uid());
        assert!(parse("this: is: not: a pod\n", Path::new("x"), "n").is_err());
        assert!(
            parse("kind: Pod\nmetadata: {name: x}", Path::new("x"), "n").unwrap_err().contains("containers")
        );
    }

    #[test]
    fn changes_are_seen_and_bad_files_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let mut source = FileSource::new(dir.path().into(), "node01".into());
        assert!(source.read().is_empty());
        std::fs::write(dir.path().join("bad.yaml"), "no: [").unwrap();
        std::fs::write(dir.path().join(".hidden"), POD).unwrap();
        std::fs::write(dir.path().join("a.yaml"), POD).unwrap();
        let first = source.read();
        assert_eq!(first.len(), 1);
        assert!(Arc::ptr_eq(&first[0], &source.read()[0]));
        std::fs::write(dir.path().join("a.yaml"), POD.replace("busybox", "nginx:1")).unwrap();
        assert_ne!(source.read()[0].uid(), first[0].uid());
        std::fs::remove_file(dir.path().join("a.yaml")).unwrap();
        assert!(source.read().is_empty());
    }
}
