//! `/containerLogs` and `/logs`.

use std::path::{Component, Path};
use std::sync::Arc;

use tokio::sync::mpsc;

use super::answer::{self, Answer};
use super::query;
use super::route::Target;
use crate::kubelet::Kubelet;
use crate::logs::reader::Log;
use crate::logs::{LogError, Options, container_id};
use crate::pod::PodExt;
use crate::runtime::status::State;

/// Parts of a log under way to a slow reader.
const IN_FLIGHT: usize = 4;

/// `/containerLogs`
pub async fn container_logs(kubelet: &Arc<Kubelet>, query: &str, target: &Target) -> Answer {
    let options = match Options::from_query(&query::pairs(query), crate::clock::now()) {
        Ok(o) => o,
        Err(e @ LogError::Undecodable) => return answer::text(400, e.to_string()),
        Err(e @ LogError::Invalid) => return answer::text(422, e.to_string()),
    };
    let Some(pod) = kubelet.registry.find(&target.namespace, &target.pod) else {
        return answer::text(404, format!("pod {:?} does not exist\n", target.pod));
    };
    if pod.any_container(&target.container).is_none() {
        return answer::text(
            404,
            format!("container {:?} not found in pod {:?}\n", target.container, target.pod),
        );
    }
    let status = kubelet.status.current(&pod);
    let id = match container_id(pod.name(), &status, &target.container, options.previous) {
        Ok(id) => id,
        Err(e) => return answer::text(400, e),
    };
    let bare = id.split_once("://").map_or(id.as_str(), |(_, i)| i).to_string();
    // From here on v1.20 has already said 200.
    let log = match kubelet.cri.container_status(&bare).await {
        Ok(s) => Log::open(Path::new(&s.log_path), &options).await,
        Err(_) => Err(format!("unable to retrieve container logs for {id}")),
    };
    let log = match log {
        Ok(l) => l,
        Err(e) => return answer::text(200, e),
    };
    let (tx, rx) = mpsc::channel(IN_FLIGHT);
    let runtime = kubelet.cri.clone();
    tokio::spawn(log.send(tx, move || {
        let (runtime, id) = (runtime.clone(), bare.clone());
        async move {
            // A runtime that does not answer says nothing of the container.
            match runtime.container_status(&id).await {
                Ok(s) => State::from(s.state) == State::Running,
                Err(e) => !e.is_not_found(),
            }
        }
    }));
    answer::stream(rx)
}

/// `/logs/…`: the folder of the machine's logs.
pub async fn system_logs(root: &Path, below: &str) -> Answer {
    let below = query::decode(below, false);
    if Path::new(&below).components().any(|c| !matches!(c, Component::Normal(_) | Component::CurDir)) {
        return answer::error(400, "invalid URL path");
    }
    let path = root.join(&below);
    let Ok(meta) = tokio::fs::metadata(&path).await else { return answer::text(404, "404 page not found\n") };
    if !meta.is_dir() {
        return file(&path).await;
    }
    if !below.is_empty() && !below.ends_with('/') {
        return answer::redirect(&format!("/logs/{below}/"));
    }
    let mut names: Vec<String> = Vec::new();
    let Ok(mut entries) = tokio::fs::read_dir(&path).await else {
        return answer::error(500, "Error reading directory");
    };
    while let Ok(Some(e)) = entries.next_entry().await {
        let slash = if e.path().is_dir() { "/" } else { "" };
        names.push(format!("{}{slash}", e.file_name().to_string_lossy()));
    }
    names.sort();
    let escape =
        |s: &str| s.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&#34;");
    let links: String = names.iter().map(|n| format!("<a href=\"{0}\">{0}</a>\n", escape(n))).collect();
    answer::of(200, "text/html; charset=utf-8", format!("<pre>\n{links}</pre>\n"))
}

async fn file(path: &Path) -> Answer {
    use tokio::io::AsyncReadExt;
    let mut file = match tokio::fs::File::open(path).await {
        Ok(f) => f,
        Err(e) if e.kind() == std::io::ErrorKind::PermissionDenied => {
            return answer::text(403, "403 Forbidden\n");
        }
        Err(_) => return answer::text(404, "404 page not found\n"),
    };
    let (tx, rx) = mpsc::channel::<bytes::Bytes>(IN_FLIGHT);
    tokio::spawn(async move {
        let mut chunk = vec![0; 64 * 1024];
        while let Ok(n @ 1..) = file.read(&mut chunk).await {
            if tx.send(bytes::Bytes::copy_from_slice(&chunk[..n])).await.is_err() {
                return;
            }
        }
    });
    let mut answer = answer::stream(rx);
    answer.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static(answer::TEXT));
    answer
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;

    #[tokio::test]
    async fn system_logs_stay_in_their_folder() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("log");
        std::fs::create_dir_all(root.join("pods")).unwrap();
        std::fs::write(dir.path().join("secret"), "x").unwrap();
        std::fs::write(root.join("syslog"), "line\n").unwrap();
        let get = async |p: &str| {
            let a = system_logs(&root, p).await;
            let code = a.status().as_u16();
            (code, String::from_utf8(a.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap())
        };
        assert_eq!(get("syslog").await, (200, "line\n".into()));
        assert_eq!(get("../secret").await.0, 400);
        assert_eq!(get("%2e%2e/secret").await.0, 400);
        assert_eq!(get("nosuch").await.0, 404);
        assert_eq!(get("pods").await.0, 301);
        assert_eq!(
            get("").await.1,
            "<pre>\n<a href=\"pods/\">pods/</a>\n<a href=\"syslog\">syslog</a>\n</pre>\n"
        );
    }
}
