//! Input that nobody should send: each gets an answer that says what is wrong, in bounded time and memory, and the
//! server goes on.

use std::convert::Infallible;
use std::time::{Duration, Instant};

use crate::common::{Api, LIMIT, start, start_newest};
use bytes::Bytes;
use futures::StreamExt;
use http::Method;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use pilothouse_apimachinery::json::{Value, json};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const JSON: &str = "application/json";
const YAML: &str = "application/yaml";
const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";
const MERGE: &str = "application/merge-patch+json";
const STRATEGIC: &str = "application/strategic-merge-patch+json";
const JSON_PATCH: &str = "application/json-patch+json";
const APPLY: &str = "application/apply-patch+yaml";

/// How long one of these answers may take, in a debug build on a busy machine.
const SOON: Duration = Duration::from_secs(10);

struct Case {
    name: &'static str,
    method: Method,
    path: String,
    content_type: &'static str,
    body: Bytes,
    code: u16,
    /// What the message has in it.
    says: &'static str,
}

fn case(
    name: &'static str,
    method: Method,
    path: impl Into<String>,
    content_type: &'static str,
    body: impl Into<Bytes>,
    (code, says): (u16, &'static str),
) -> Case {
    Case { name, method, path: path.into(), content_type, body: body.into(), code, says }
}

fn map(name: &str, more: &str) -> String {
    format!(r#"{{"apiVersion":"v1","kind":"ConfigMap","metadata":{{"name":"{name}"}}{more}}}"#)
}

async fn ask(api: &Api, case: &Case) -> (u16, Bytes) {
    let headers = [("content-type", case.content_type)];
    let response = api.send(case.method.clone(), &case.path, &headers, case.body.clone()).await;
    let code = response.status().as_u16();
    (code, response.into_body().collect().await.unwrap().to_bytes())
}

async fn check(cases: Vec<Case>) {
    let world = start(&[]).await;
    let api = world.api();
    api.post(MAPS, json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x"}})).await;
    for case in cases {
        let started = Instant::now();
        let (code, body) = ask(&api, &case).await;
        let text = String::from_utf8_lossy(&body);
        let shown = &text[..text.len().min(300)];
        assert!(started.elapsed() < SOON, "{} took {:?}", case.name, started.elapsed());
        assert_eq!(code, case.code, "{}: {shown}", case.name);
        assert!(text.contains(case.says), "{}: {shown}", case.name);
        if code >= 400 && !case.says.is_empty() {
            let status: Value = serde_json::from_slice(&body).unwrap();
            assert_eq!((&status["kind"], &status["code"]), (&json!("Status"), &json!(code)), "{}", case.name);
        }
    }
    // Nothing of it has hurt.
    assert_eq!(api.get(&format!("{MAPS}/x")).await.0, 200);
    world.stop().await;
}

fn deep_lists() -> String {
    format!("{}{}", "[".repeat(10_000), "]".repeat(10_000))
}

fn deep_maps() -> String {
    format!("{}1{}", r#"{"a":"#.repeat(10_000), "}".repeat(10_000))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_that_are_no_objects() {
    let post = |name, content_type, body: &str, answer| {
        case(name, Method::POST, MAPS, content_type, body.to_string(), answer)
    };
    let raw = |name, content_type, body: &'static [u8], answer| {
        case(name, Method::POST, MAPS, content_type, Bytes::from_static(body), answer)
    };
    let bomb = (0..9).fold("a: &a [x,x,x,x,x,x,x,x,x]\n".to_string(), |text, i| {
        let (name, of) = ((b'b' + i) as char, (b'a' + i) as char);
        text + &format!("{name}: &{name} [{}]\n", vec![format!("*{of}"); 9].join(","))
    });
    check(vec![
        post("empty", JSON, "", (400, "unexpected end of JSON input")),
        post("garbage", JSON, "xyz", (400, "invalid character 'x' looking for beginning of value")),
        post("truncated", JSON, r#"{"apiVersion":"v1","kind":"Con"#, (400, "unexpected end of JSON input")),
        post("a list", JSON, "[]", (400, "cannot unmarshal array")),
        post("a text", JSON, r#""x""#, (400, "cannot unmarshal string")),
        post("two objects", JSON, &format!("{}}}{{", map("a", "")), (400, "after top-level value")),
        raw(
            "no text",
            JSON,
            b"{\"apiVersion\":\"v1\",\"kind\":\"ConfigMap\",\"metadata\":{\"name\":\"a\xff\"}}",
            (400, "BadRequest"),
        ),
        post("NUL in a name", JSON, &map("a\\u0000b", ""), (422, "RFC 1123")),
        post(
            "a wrong type",
            JSON,
            &map("a", r#","data":{"a":1}"#),
            (400, "cannot unmarshal number into Go struct field ConfigMap.data"),
        ),
        post("YAML that is none", YAML, "\tx: [", (400, "error converting YAML to JSON")),
        post(
            "truncated YAML",
            YAML,
            "apiVersion: v1\nkind: \"ConfigMap",
            (400, "error converting YAML to JSON"),
        ),
        post("a YAML bomb", YAML, &bomb, (400, "error converting YAML to JSON")),
        post("two documents", YAML, "kind: ConfigMap\n---\nkind: Pod\n", (400, "more than one document")),
        post("protobuf without its prefix", PROTOBUF, "xyz", (400, "expected prefix [107 56 115 0]")),
        raw(
            "truncated protobuf",
            PROTOBUF,
            b"k8s\0\x0a\x0f\x0a\x02v1\x12\x09Config",
            (400, "unexpected EOF"),
        ),
        raw(
            "a length of 2^63",
            PROTOBUF,
            b"k8s\0\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
            (400, "BadRequest"),
        ),
        raw(
            "another kind",
            PROTOBUF,
            b"k8s\0\x0a\x09\x0a\x02v1\x12\x03Pod\x12\x00",
            (400, "cannot be handled as a ConfigMap"),
        ),
        post(
            "an unknown format",
            "text/plain",
            "{}",
            (415, "the body of the request was in an unknown format"),
        ),
        case(
            "a JSON patch that is none",
            Method::PATCH,
            format!("{MAPS}/x"),
            JSON_PATCH,
            r#"{"a":1}"#,
            (400, "cannot unmarshal object"),
        ),
        case(
            "an unknown operation",
            Method::PATCH,
            format!("{MAPS}/x"),
            JSON_PATCH,
            r#"[{"op":"explode","path":"/data"}]"#,
            (422, "the server rejected our request"),
        ),
        case(
            "a strategic patch that is a list",
            Method::PATCH,
            format!("{MAPS}/x"),
            STRATEGIC,
            "[]",
            (400, "cannot unmarshal array"),
        ),
        case(
            "a merge patch that is none",
            Method::PATCH,
            format!("{MAPS}/x"),
            MERGE,
            "nope",
            (500, "Invalid JSON Patch"),
        ),
        case(
            "an apply that is no YAML",
            Method::PATCH,
            format!("{MAPS}/x?fieldManager=m"),
            APPLY,
            "\t- [",
            (400, "error decoding YAML"),
        ),
        case(
            "delete options that are none",
            Method::DELETE,
            format!("{MAPS}/x"),
            JSON,
            "garbage",
            (500, "couldn't get version/kind; json parse error"),
        ),
        case(
            "delete options of another kind",
            Method::DELETE,
            format!("{MAPS}/x"),
            JSON,
            r#"{"kind":"Pod","apiVersion":"v1"}"#,
            (500, "unknown conversion"),
        ),
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_that_are_too_much() {
    let mut copies = vec![json!({"op": "add", "path": "/data", "value": {"k": "x".repeat(1000)}})];
    copies.extend((0..40).map(|i| json!({"op": "copy", "from": "/data", "path": format!("/data/{i}")})));
    let many = json!(vec![json!({"op": "add", "path": "/data/k", "value": "v"}); 10_001]).to_string();
    let x = format!("{MAPS}/x");
    let applied = format!("{MAPS}/x?fieldManager=m");
    let mut nested = b"k8s\0\x0a\x0f\x0a\x02v1\x12\x09ConfigMap\x12\x88\x27".to_vec();
    nested.extend(b"\x0a\x7f".repeat(2500));
    let wrapped = format!(r#"[{{"op":"add","path":"/data","value":{}}}]"#, deep_lists());
    let yaml = format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: a}}\ndata: {}", deep_lists());
    let big = |size: usize| map("big", &format!(r#","data":{{"k":"{}"}}"#, "x".repeat(size)));
    let bad = (400, "BadRequest");
    check(vec![
        case(
            "lists, 10,000 deep",
            Method::POST,
            MAPS,
            JSON,
            map("a", &format!(r#","data":{}"#, deep_lists())),
            bad,
        ),
        case(
            "maps, 10,000 deep",
            Method::POST,
            MAPS,
            JSON,
            map("a", &format!(r#","data":{}"#, deep_maps())),
            bad,
        ),
        // What is not known is dropped, however deep it lies.
        case(
            "an unknown field, 10,000 deep",
            Method::POST,
            MAPS,
            JSON,
            map("deep", &format!(r#","no":{}"#, deep_lists())),
            (201, ""),
        ),
        case("YAML, 10,000 deep", Method::POST, MAPS, YAML, yaml, (400, "exceeded max depth")),
        case("apply, 10,000 deep", Method::PATCH, applied, APPLY, deep_maps(), (400, "exceeded max depth")),
        case("strategic patch, 10,000 deep", Method::PATCH, x.clone(), STRATEGIC, deep_maps(), bad),
        case(
            "merge patch, 10,000 deep",
            Method::PATCH,
            x.clone(),
            MERGE,
            deep_maps(),
            (500, "Invalid JSON Patch"),
        ),
        case("JSON patch, 10,000 deep", Method::PATCH, x.clone(), JSON_PATCH, wrapped, bad),
        case("protobuf, 2,500 deep", Method::POST, MAPS, PROTOBUF, nested, bad),
        case(
            "10,001 operations",
            Method::PATCH,
            x.clone(),
            JSON_PATCH,
            many,
            (413, "The allowed maximum operations in a JSON patch is 10000, got 10001"),
        ),
        case(
            "copies of copies",
            Method::PATCH,
            x,
            JSON_PATCH,
            json!(copies).to_string(),
            (422, "the server rejected our request"),
        ),
        case(
            "a megabyte of brackets",
            Method::POST,
            MAPS,
            YAML,
            "[".repeat(1 << 20),
            (400, "exceeded max depth"),
        ),
        case(
            "data over a megabyte",
            Method::POST,
            MAPS,
            JSON,
            big(2_900_000),
            (422, "must have at most 1048576 bytes"),
        ),
        case(
            "over three megabytes",
            Method::POST,
            MAPS,
            JSON,
            big(3 << 20),
            (413, "Request entity too large: limit is 3145728"),
        ),
        case("data of a megabyte", Method::POST, MAPS, JSON, big(1_000_000), (201, "")),
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unknown_and_repeated_fields() {
    // v1.20 drops what it does not know; of a field that stands twice the last one counts.
    let world = start(&[]).await;
    let api = world.api();
    let send = async |content_type: &str, body: String| {
        let response = api.send(Method::POST, MAPS, &[("content-type", content_type)], body.into()).await;
        let code = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (code, serde_json::from_slice::<Value>(&body).unwrap())
    };
    let (code, made) =
        send(JSON, map("a", r#","nope":{"deep":[1]},"data":{"k":"1"},"data":{"l":"2"}"#)).await;
    assert_eq!((code, made.get("nope"), &made["data"]["l"]), (201, None, &json!("2")));
    let yaml = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: b}\ndata: {a: '1', a: '2'}\n";
    let (code, made) = send(YAML, yaml.into()).await;
    assert_eq!((code, &made["data"]["a"]), (201, &json!("2")));
    world.stop().await;

    // Today a client may ask to be told, or that it be refused.
    let world = start_newest(&[]).await;
    let api = world.api();
    let body = map("a", r#","nope":1,"data":{"k":"1"},"data":{"l":"2"}"#);
    let headers = [("content-type", JSON)];
    let strict = api
        .send(Method::POST, &format!("{MAPS}?fieldValidation=Strict"), &headers, body.clone().into())
        .await;
    assert_eq!(strict.status(), 400);
    let text = strict.into_body().collect().await.unwrap().to_bytes();
    let status: Value = serde_json::from_slice(&text).unwrap();
    let message = status["message"].as_str().unwrap();
    assert!(
        message.contains("strict decoding error") && message.contains("unknown field \"nope\""),
        "{message}"
    );
    assert!(message.contains("duplicate field \"data\""), "{message}");
    let warned = api.send(Method::POST, &format!("{MAPS}?fieldValidation=Warn"), &headers, body.into()).await;
    assert_eq!(warned.status(), 201);
    let warnings: Vec<&str> =
        warned.headers().get_all("warning").iter().map(|w| w.to_str().unwrap()).collect();
    assert!(warnings.iter().any(|w| w.contains("unknown field \\\"nope\\\"")), "{warnings:?}");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn absurd_selectors_and_tokens() {
    let get = |name, query: String, answer| {
        case(name, Method::GET, format!("{MAPS}?{query}"), JSON, Bytes::new(), answer)
    };
    // {"v":"meta.k8s.io/v1","rv":…,"start":…}
    let token = |rv: i64, start: &str| {
        use base64::Engine;
        let token = json!({"v": "meta.k8s.io/v1", "rv": rv, "start": start}).to_string();
        base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(token)
    };
    check(vec![
        get("an open bracket", "labelSelector=a%20in%20(".into(), (400, "unable to parse requirement")),
        get(
            "brackets",
            format!("labelSelector={}", "(".repeat(5000)),
            (400, "found '(', expected: !, identifier, or"),
        ),
        get("no text", "labelSelector=%FF%FE".into(), (400, "invalid label key")),
        get(
            "10,000 requirements",
            format!("labelSelector={}a", "a%3Db,".repeat(9000)),
            (200, "\"items\":[]"),
        ),
        get("an unknown field", "fieldSelector=nope%3D1".into(), (400, "is not a known field selector")),
        get("no requirement", "fieldSelector=metadata.name".into(), (400, "can't understand")),
        get(
            "3,000 fields",
            format!("fieldSelector={}", "metadata.name%3Da,".repeat(3000)),
            (200, "\"items\":[]"),
        ),
        get("no token", "limit=1&continue=xyz".into(), (400, "continue key is not valid")),
        get(
            "50 kB of token",
            format!("limit=1&continue={}", "A".repeat(50_000)),
            (400, "continue key is not valid"),
        ),
        get(
            "a token that climbs",
            format!("limit=1&continue={}", token(5, "../../secrets")),
            (400, "continue key is not valid"),
        ),
        get("a token of yore", format!("limit=1&continue={}", token(-5, "a\0")), (200, "\"items\":[")),
        get(
            "a token of tomorrow",
            format!("limit=1&continue={}", token(99_999_999, "a\0")),
            (504, "Too large resource version"),
        ),
        get("a limit that is none", "limit=99999999999999999999".into(), (400, "value out of range")),
        get("a resource version that is none", "resourceVersion=-1".into(), (500, "invalid syntax")),
        get(
            "a time limit that is none",
            "watch=1&timeoutSeconds=99999999999999999999".into(),
            (400, "value out of range"),
        ),
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_names_and_paths() {
    let get = |name, path: &str, answer| case(name, Method::GET, path, JSON, Bytes::new(), answer);
    let put = |name, of: &str, body: String, answer| {
        case(name, Method::PUT, format!("{MAPS}/{of}"), JSON, body, answer)
    };
    check(vec![
        get("a name that climbs", &format!("{MAPS}/..%2f..%2fsecrets"), (404, "")),
        get("a NUL", &format!("{MAPS}/%00"), (404, "not found")),
        get("no text", &format!("{MAPS}/%ff%fe"), (404, "not found")),
        get("20 kB", &format!("{MAPS}/{}", "a".repeat(20_000)), (404, "not found")),
        get("a namespace that climbs", "/api/v1/namespaces/..%2f/configmaps/a", (404, "")),
        get("a path that climbs", "/api/v1/../../etc/passwd", (404, "")),
        get("a group that climbs", "/apis/%2e%2e/v1/x", (404, "")),
        get("5,000 parts", &format!("/{}", "a/".repeat(5000)), (404, "")),
        get("an unknown subresource", "/api/v1/namespaces/default/pods/x/nope", (404, "")),
        put("two dots", "%2e%2e", map("..", ""), (404, "")),
        put("one dot", "%2e", map(".", ""), (404, "")),
        case(
            "a name that climbs, created",
            Method::POST,
            MAPS,
            JSON,
            map("../../x", ""),
            (422, "Invalid value: \\\"../../x\\\""),
        ),
        case(
            "300 letters",
            Method::POST,
            MAPS,
            JSON,
            map(&"a".repeat(300), ""),
            (422, "must be no more than 253 characters"),
        ),
        case(
            "an unknown method",
            Method::from_bytes(b"BREW").unwrap(),
            MAPS,
            JSON,
            Bytes::new(),
            (405, "MethodNotAllowed"),
        ),
    ])
    .await;
}

/// A body that comes in pieces, from a function.
fn stream(
    frames: impl futures::Stream<Item = Bytes> + Send + 'static,
) -> pilothouse_apiserver::request::Body {
    StreamBody::new(frames.map(|b| Ok::<_, Infallible>(Frame::data(b))))
        .map_err(|e| match e {})
        .boxed_unsync()
}

fn request(body: pilothouse_apiserver::request::Body) -> http::Request<pilothouse_apiserver::request::Body> {
    http::Request::builder()
        .method(Method::POST)
        .uri(MAPS)
        .header("authorization", "Bearer T")
        .header("content-type", JSON)
        .body(body)
        .unwrap()
}

async fn metric(api: &Api, name: &str) -> f64 {
    let response = api.send(Method::GET, "/metrics", &[], Bytes::new()).await;
    let text = response.into_body().collect().await.unwrap().to_bytes();
    let text = String::from_utf8_lossy(&text).into_owned();
    let line = text.lines().find(|l| l.starts_with(name)).unwrap_or_else(|| panic!("no {name}"));
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_that_never_end() {
    let world = start(&["--request-timeout=3s"]).await;
    let api = world.api();
    // More and more: refused once it is too much.
    let endless = futures::stream::repeat_with(|| Bytes::from(vec![b' '; 64 << 10]));
    match api.0.send(request(stream(endless)), LIMIT).await {
        Ok(answer) => assert_eq!(answer.status(), 413),
        // The connection may have been closed over the rest of the body before the answer was read.
        Err(e) => assert!(!format!("{e}").contains("timed out"), "{e}"),
    }
    // Nothing more, and no end: given up after the time limit of requests.
    let started = Instant::now();
    let stuck =
        futures::stream::iter([Bytes::from_static(b"{\"apiVersion\":")]).chain(futures::stream::pending());
    let answer = api.0.send(request(stream(stuck)), LIMIT).await.unwrap();
    assert_eq!(answer.status(), 504);
    assert!(started.elapsed() < LIMIT);
    let status: Value =
        serde_json::from_slice(&answer.into_body().collect().await.unwrap().to_bytes()).unwrap();
    assert_eq!(status["reason"], "Timeout");
    let mutating = "apiserver_current_inflight_requests{request_kind=\"mutating\"}";
    tokio::time::timeout(LIMIT, async {
        while metric(&api, mutating).await > 0.0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .expect("a request that has been given up is still counted");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_vanish() {
    let world = start(&[]).await;
    let api = world.api();
    let watching = "apiserver_longrunning_gauge{verb=\"WATCH\"";
    // Those who watch, and those who are in the middle of a body.
    let mut open = Vec::new();
    for _ in 0..20 {
        open.push(api.watch(&format!("{MAPS}?watch=true")).await);
    }
    assert!(metric(&api, watching).await >= 20.0);
    let mut half = Vec::new();
    for _ in 0..20 {
        let target = api.0.clone();
        let stuck = futures::stream::iter([Bytes::from_static(b"{")]).chain(futures::stream::pending());
        half.push(tokio::spawn(async move { target.send(request(stream(stuck)), LIMIT).await.map(drop) }));
    }
    let mutating = "apiserver_current_inflight_requests{request_kind=\"mutating\"}";
    let wait = async |name: &str, done: fn(f64) -> bool| {
        tokio::time::timeout(LIMIT, async {
            while !done(metric(&api, name).await) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await
        .unwrap_or_else(|_| panic!("{name}"))
    };
    wait(mutating, |n| n >= 20.0).await;
    drop(open);
    half.iter().for_each(tokio::task::JoinHandle::abort);
    wait(watching, |n| n == 0.0).await;
    wait(mutating, |n| n == 0.0).await;
    assert_eq!(api.get(MAPS).await.0, 200);
    world.stop().await;
}
