//! Which handler a request is for. Methods, redirects and refusals are those of v1.20's kubelet, whose paths are
//! partly plain (any method) and partly those of a REST container that looks at method and `Accept`.

use http::Method;

/// A pod's container, as a path names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Namespace.
    pub namespace: String,
    /// Pod.
    pub pod: String,
    /// Uid, where the path has one.
    pub uid: Option<String>,
    /// Container; empty for port forwarding.
    pub container: String,
}

/// A handler.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route {
    /// `/healthz`, `/healthz/ping`, … with the check's name.
    Healthz(&'static str),
    /// `/pods`
    Pods,
    /// `/runningpods/`
    RunningPods,
    /// `/stats/summary`
    Summary,
    /// `/metrics`
    Metrics,
    /// `/metrics/cadvisor`
    CadvisorMetrics,
    /// `/metrics/probes`
    ProbeMetrics,
    /// `/metrics/resource`
    ResourceMetrics,
    /// `/configz`
    Configz,
    /// `/logs/…`, with the path below the folder of logs.
    SystemLogs(String),
    /// `/containerLogs/…`
    ContainerLogs(Target),
    /// `/exec/…`
    Exec(Target),
    /// `/attach/…`
    Attach(Target),
    /// `/run/…`
    Run(Target),
    /// `/portForward/…`
    PortForward(Target),
    /// `/debug/flags/v`
    LogLevel,
}

/// What becomes of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// It is handled.
    Route(Route),
    /// There is such a path with a slash at its end.
    Redirect(String),
    /// There is nothing of that kind. Said to anybody.
    Unknown,
    /// Refused with a code and a text, once it is known who asks.
    Refused(u16, &'static str),
}

const NOT_FOUND: Found = Found::Refused(404, "404: Page Not Found");
const METHOD: Found = Found::Refused(405, "405: Method Not Allowed");
const NOT_ACCEPTABLE: Found = Found::Refused(406, "406: Not Acceptable");
/// What stands for the handlers that run, read and reach into containers where they are turned off.
const DISABLED: Found = Found::Refused(405, "Debug endpoints are disabled.\n");

/// Finds the handler. `debugging` is `enableDebuggingHandlers`.
pub fn find(method: &Method, path: &str, accept: &str, debugging: bool) -> Found {
    let exact = match path {
        "/healthz" => Some(Route::Healthz("")),
        "/healthz/ping" => Some(Route::Healthz("ping")),
        "/healthz/log" => Some(Route::Healthz("log")),
        "/healthz/syncloop" => Some(Route::Healthz("syncloop")),
        "/metrics" => Some(Route::Metrics),
        "/metrics/cadvisor" => Some(Route::CadvisorMetrics),
        "/metrics/probes" => Some(Route::ProbeMetrics),
        "/metrics/resource" => Some(Route::ResourceMetrics),
        "/configz" => Some(Route::Configz),
        "/debug/flags/v" if debugging => Some(Route::LogLevel),
        _ => None,
    };
    if let Some(route) = exact {
        return Found::Route(route);
    }
    let mut parts = path.strip_prefix('/').unwrap_or(path).split('/');
    let first = parts.next().unwrap_or("");
    let rest: Vec<&str> = parts.collect();
    match first {
        "pods" if rest.is_empty() || rest == [""] => {
            service(method, accept, &[Method::GET], true, Some(Route::Pods))
        }
        "pods" => NOT_FOUND,
        // These exist with a slash only.
        "stats" | "logs" | "runningpods" if rest.is_empty() => Found::Redirect(format!("{path}/")),
        "stats" => {
            let route = (rest == ["summary"]).then_some(Route::Summary);
            service(method, accept, &[Method::GET], true, route)
        }
        "run" | "exec" | "attach" | "portForward" | "containerLogs" | "runningpods" | "logs"
            if !debugging =>
        {
            DISABLED
        }
        "debug" if rest.first() == Some(&"pprof") && !debugging => DISABLED,
        "runningpods" => {
            let route = (rest == [""]).then_some(Route::RunningPods);
            service(method, accept, &[Method::GET], true, route)
        }
        "logs" => service(method, accept, &[Method::GET], false, Some(Route::SystemLogs(rest.join("/")))),
        "run" => service(method, accept, &[Method::POST], false, target(&rest, true).map(Route::Run)),
        "exec" => stream(method, accept, target(&rest, true).map(Route::Exec)),
        "attach" => stream(method, accept, target(&rest, true).map(Route::Attach)),
        "portForward" => stream(method, accept, target(&rest, false).map(Route::PortForward)),
        "containerLogs" => {
            // Without a uid only.
            let target = target(&rest, true).filter(|t| t.uid.is_none());
            service(method, accept, &[Method::GET], false, target.map(Route::ContainerLogs))
        }
        "debug" if rest.first() == Some(&"pprof") => {
            // Go's profiles have no counterpart here.
            let there = rest.get(1).is_some_and(|p| !p.is_empty());
            if there && !accepts(accept, false) { NOT_ACCEPTABLE } else { NOT_FOUND }
        }
        _ => Found::Unknown,
    }
}

fn stream(method: &Method, accept: &str, route: Option<Route>) -> Found {
    service(method, accept, &[Method::GET, Method::POST], false, route)
}

fn service(method: &Method, accept: &str, methods: &[Method], json: bool, route: Option<Route>) -> Found {
    match route {
        None => NOT_FOUND,
        Some(_) if !methods.contains(method) => METHOD,
        Some(_) if !accepts(accept, json) => NOT_ACCEPTABLE,
        Some(r) => Found::Route(r),
    }
}

/// Whether the client takes the answer: JSON, or something of a kind that is not said beforehand.
fn accepts(accept: &str, json: bool) -> bool {
    if accept.trim().is_empty() {
        return true;
    }
    let types = accept.split(',').map(|t| t.split(';').next().unwrap_or("").trim());
    types.into_iter().any(|t| t == "*/*" || (json && t == "application/json"))
}

/// `namespace/pod[/uid][/container]`.
fn target(parts: &[&str], container: bool) -> Option<Target> {
    let parts = parts.strip_suffix(&[""]).unwrap_or(parts);
    if parts.iter().any(|p| p.is_empty()) {
        return None;
    }
    let own = |s: &str| super::query::decode(s, false);
    let (namespace, pod, uid, container) = match (parts, container) {
        ([ns, pod, c], true) => (ns, pod, None, *c),
        ([ns, pod, uid, c], true) => (ns, pod, Some(*uid), *c),
        ([ns, pod], false) => (ns, pod, None, ""),
        ([ns, pod, uid], false) => (ns, pod, Some(*uid), ""),
        _ => return None,
    };
    Some(Target { namespace: own(namespace), pod: own(pod), uid: uid.map(own), container: own(container) })
}

/// The subresource of `nodes` that a path stands for in an authorization.
pub fn subresource(path: &str) -> &'static str {
    let below = |base: &str| path == base || path.strip_prefix(base).is_some_and(|r| r.starts_with('/'));
    if below("/stats") {
        "stats"
    } else if below("/metrics") {
        "metrics"
    } else if below("/logs") {
        "log"
    } else if below("/spec") {
        "spec"
    } else {
        "proxy"
    }
}

/// The API verb of a method.
pub fn verb(method: &Method) -> &'static str {
    match method.as_str() {
        "POST" => "create",
        "GET" => "get",
        "PUT" => "update",
        "PATCH" => "patch",
        "DELETE" => "delete",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const JSON: &str = "application/json";

    fn code(path: &str, accept: &str) -> u16 {
        match find(&Method::GET, path, accept, true) {
            Found::Route(Route::LogLevel) => 406,
            Found::Route(_) => 200,
            Found::Redirect(_) => 301,
            Found::Unknown => 404,
            Found::Refused(c, _) => c,
        }
    }

    /// Recorded from v1.20.2, asked with `Accept: application/json`.
    #[test]
    fn paths_of_v1_20() {
        for (path, want) in [
            ("/healthz", 200),
            ("/healthz/ping", 200),
            ("/healthz/log", 200),
            ("/healthz/syncloop", 200),
            ("/pods", 200),
            ("/pods/", 200),
            ("/runningpods", 301),
            ("/runningpods/", 200),
            ("/stats", 301),
            ("/stats/", 404),
            ("/stats/summary", 200),
            ("/stats/container", 404),
            ("/spec", 404),
            ("/spec/", 404),
            ("/metrics", 200),
            ("/metrics/", 404),
            ("/metrics/cadvisor", 200),
            ("/metrics/probes", 200),
            ("/metrics/resource", 200),
            ("/metrics/resource/v1alpha1", 404),
            ("/configz", 200),
            ("/logs", 301),
            ("/logs/", 406),
            ("/logs/nosuch", 406),
            ("/debug/pprof/", 404),
            ("/debug/pprof/cmdline", 406),
            ("/debug/flags/v", 406),
            ("/containerLogs/default/p/c", 406),
            ("/containerLogs/", 404),
            ("/exec/default/p/c", 406),
            ("/run/default/p/c", 405),
            ("/attach/default/p/c", 406),
            ("/portForward/default/p", 406),
            ("/cri/", 404),
            ("/", 404),
            ("/nosuch", 404),
            ("/api/v1/pods", 404),
            ("/readyz", 404),
            ("/version", 404),
        ] {
            assert_eq!(code(path, JSON), want, "{path}");
        }
        assert_eq!(code("/exec/default/p/c", ""), 200);
        assert_eq!(code("/logs/x", "text/html, */*;q=0.8"), 200);
    }

    #[test]
    fn targets() {
        let Found::Route(Route::Exec(t)) = find(&Method::POST, "/exec/n/p/u/c%20d", "*/*", true) else {
            panic!()
        };
        assert_eq!((t.uid.as_deref(), t.container.as_str()), (Some("u"), "c d"));
        let Found::Route(Route::PortForward(t)) = find(&Method::POST, "/portForward/n/p", "", true) else {
            panic!()
        };
        assert_eq!((t.namespace.as_str(), t.pod.as_str(), t.uid), ("n", "p", None));
        assert_eq!(find(&Method::POST, "/exec/n/p/c", "", false), DISABLED);
        assert_eq!(find(&Method::POST, "/run/n/p/c", "application/json", true), NOT_ACCEPTABLE);
    }

    #[test]
    fn attributes() {
        for (path, want) in [
            ("/stats/summary", "stats"),
            ("/statsx", "proxy"),
            ("/metrics/cadvisor", "metrics"),
            ("/logs/x", "log"),
            ("/logs", "log"),
            ("/spec/", "spec"),
            ("/containerLogs/n/p/c", "proxy"),
            ("/", "proxy"),
        ] {
            assert_eq!(subresource(path), want, "{path}");
        }
        assert_eq!((verb(&Method::POST), verb(&Method::HEAD)), ("create", ""));
    }
}
