//! A small HTTP client for probes and hooks: one request, no connection kept, certificates not checked, redirects on
//! the same host followed; its errors read as Go's do, because events show them.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Request, Uri, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use pilothouse_pki::tls::AnyCertificate;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

/// Most of a body that is read.
const MAX_BODY: usize = 10 * 1024;
const MAX_REDIRECTS: usize = 10;

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Status code.
    pub code: u16,
    /// The beginning of the body.
    pub body: String,
}

/// `http://host:port/path`, with an IPv6 host in brackets.
pub fn url(scheme: &str, host: &str, port: u16, path: &str) -> String {
    let host = if host.contains(':') { format!("[{host}]") } else { host.to_string() };
    let slash = if path.starts_with('/') || path.is_empty() { "" } else { "/" };
    format!("{}://{host}:{port}{slash}{}", scheme.to_lowercase(), escape(path))
}

/// Escapes what may not stand in a path or query.
fn escape(path: &str) -> String {
    let keep = |b: u8| {
        b.is_ascii_graphic() && !matches!(b, b'"' | b'<' | b'>' | b'\\' | b'^' | b'`' | b'{' | b'|' | b'}')
    };
    path.bytes().map(|b| if keep(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

/// Makes a GET request. The error is Go's: `Get "http://…": dial tcp …: connect: connection refused`.
pub async fn get(
    url: &str,
    headers: &[(String, String)],
    timeout: Option<Duration>,
) -> Result<Answer, String> {
    let fail = |why: String| format!("Get \"{url}\": {why}");
    let work = follow(url, headers);
    match timeout {
        None => work.await.map_err(fail),
        Some(t) => match tokio::time::timeout(t, work).await {
            Ok(r) => r.map_err(fail),
            Err(_) => Err(fail(
                "context deadline exceeded (Client.Timeout exceeded while awaiting headers)".to_string(),
            )),
        },
    }
}

async fn follow(url: &str, headers: &[(String, String)]) -> Result<Answer, String> {
    let mut uri: Uri = url.parse().map_err(|e| format!("{e}"))?;
    let first_host = uri.host().map(String::from);
    for _ in 0..MAX_REDIRECTS {
        let (answer, location) = once(&uri, headers).await?;
        let redirect = matches!(answer.code, 301 | 302 | 303 | 307 | 308);
        let Some(next) = location.filter(|_| redirect).and_then(|l| resolve(&uri, &l)) else {
            return Ok(answer);
        };
        if next.host().map(String::from) != first_host {
            return Ok(answer);
        }
        uri = next;
    }
    Err("stopped after 10 redirects".into())
}

fn resolve(base: &Uri, location: &str) -> Option<Uri> {
    if location.contains("://") {
        return location.parse().ok();
    }
    let (scheme, authority) = (base.scheme_str()?, base.authority()?);
    let path = match location.strip_prefix('/') {
        Some(p) => format!("/{p}"),
        None => format!("{}/{location}", base.path().rsplit_once('/').map_or("", |(dir, _)| dir)),
    };
    format!("{scheme}://{authority}{path}").parse().ok()
}

async fn once(uri: &Uri, headers: &[(String, String)]) -> Result<(Answer, Option<String>), String> {
    let host = uri.host().unwrap_or("").trim_matches(['[', ']']);
    let https = uri.scheme_str() == Some("https");
    let port = uri.port_u16().unwrap_or(if https { 443 } else { 80 });
    let stream = dial(host, port).await?;
    if !https {
        return exchange(TokioIo::new(stream), uri, headers).await;
    }
    let name = ServerName::try_from(host.to_string()).map_err(|e| e.to_string())?;
    let connector = tokio_rustls::TlsConnector::from(Arc::new(trusting_tls()?));
    let stream = connector.connect(name, stream).await.map_err(|e| tls_error(&e))?;
    exchange(TokioIo::new(stream), uri, headers).await
}

/// Opens a connection; errors read `dial tcp 1.2.3.4:80: connect: connection refused`.
pub async fn dial(host: &str, port: u16) -> Result<TcpStream, String> {
    let shown = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
    TcpStream::connect((host, port)).await.map_err(|e| match e.raw_os_error() {
        Some(_) => format!("dial tcp {shown}: connect: {}", errno_text(&e)),
        None => format!("dial tcp: lookup {host}: no such host"),
    })
}

/// An operating system's error as Go prints it: `connection refused`.
fn errno_text(e: &std::io::Error) -> String {
    let text = e.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_lowercase()
}

fn tls_error(e: &std::io::Error) -> String {
    if e.kind() == std::io::ErrorKind::UnexpectedEof {
        return "EOF".into();
    }
    let inner = e.get_ref().and_then(|e| e.downcast_ref::<rustls::Error>());
    match inner {
        Some(rustls::Error::InvalidMessage(_)) => "http: server gave HTTP response to HTTPS client".into(),
        Some(other) => format!("tls: {other}"),
        None if e.raw_os_error().is_some() => format!("read tcp: {}", errno_text(e)),
        None => "EOF".into(),
    }
}

async fn exchange<S>(
    io: TokioIo<S>,
    uri: &Uri,
    headers: &[(String, String)],
) -> Result<(Answer, Option<String>), String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) =
        http1::Builder::new().title_case_headers(true).handshake(io).await.map_err(|e| net_error(&e))?;
    let driver = tokio::spawn(connection);
    let result = async {
        let path = uri.path_and_query().map_or("/", |p| p.as_str());
        let mut request = Request::get(path).body(Empty::<Bytes>::new()).map_err(|e| e.to_string())?;
        let h = request.headers_mut();
        for (k, v) in headers {
            let (Ok(k), Ok(v)) = (k.parse::<HeaderName>(), v.parse::<HeaderValue>()) else { continue };
            h.append(k, v);
        }
        if !h.contains_key(header::HOST) {
            let authority = uri.authority().map_or("", |a| a.as_str());
            h.insert(header::HOST, authority.parse().map_err(|_| format!("invalid host {authority:?}"))?);
        }
        h.insert(header::CONNECTION, HeaderValue::from_static("close"));
        let response = sender.send_request(request).await.map_err(|e| net_error(&e))?;
        let location =
            response.headers().get(header::LOCATION).and_then(|l| l.to_str().ok()).map(String::from);
        let code = response.status().as_u16();
        let mut body = Vec::new();
        let mut stream = Limited::new(response.into_body(), MAX_BODY);
        // A body that ends early or is too long is good enough: only its beginning is shown.
        while let Some(Ok(frame)) = stream.frame().await {
            if let Ok(data) = frame.into_data() {
                body.extend_from_slice(&data);
            }
        }
        Ok((Answer { code, body: String::from_utf8_lossy(&body).into_owned() }, location))
    }
    .await;
    driver.abort();
    result
}

fn net_error(e: &hyper::Error) -> String {
    use std::error::Error;
    if e.is_incomplete_message() {
        return "EOF".into();
    }
    match e.source().and_then(|s| s.downcast_ref::<std::io::Error>()) {
        Some(io) if io.raw_os_error().is_some() => format!("read: {}", errno_text(io)),
        Some(_) => "EOF".into(),
        None if e.is_parse() => format!("net/http: HTTP/1.x transport connection broken: {e}"),
        None => e.to_string(),
    }
}

fn trusting_tls() -> Result<rustls::ClientConfig, String> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?
        .dangerous()
        // A probe asks whether a container answers, not who it is.
        .with_custom_certificate_verifier(AnyCertificate::new(Vec::new()))
        .with_no_client_auth();
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    async fn server(answers: Vec<&'static str>) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            for a in answers {
                let (mut s, _) = listener.accept().await.unwrap();
                let mut buf = vec![0; 4096];
                let _ = s.read(&mut buf).await;
                s.write_all(a.as_bytes()).await.unwrap();
            }
        });
        port
    }

    #[tokio::test]
    async fn errors_read_as_in_go() {
        let port = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
        let e = get(&url("HTTP", "127.0.0.1", port, "/x"), &[], None).await.unwrap_err();
        assert_eq!(
            e,
            format!(
                "Get \"http://127.0.0.1:{port}/x\": dial tcp 127.0.0.1:{port}: connect: connection refused"
            )
        );
        let port = server(vec![""]).await;
        let e = get(&url("HTTP", "127.0.0.1", port, "/"), &[], None).await.unwrap_err();
        assert_eq!(e, format!("Get \"http://127.0.0.1:{port}/\": EOF"));
        let port = server(vec!["HTTP/1.1 400 Bad\r\n\r\n"]).await;
        let e = get(&url("HTTPS", "127.0.0.1", port, "/"), &[], None).await.unwrap_err();
        assert!(e.ends_with("http: server gave HTTP response to HTTPS client"), "{e}");
    }

    #[tokio::test]
    async fn redirects_on_the_same_host_are_followed() {
        let to_self = "HTTP/1.1 302 Found\r\nLocation: /503\r\nContent-Length: 0\r\n\r\n";
        let away = "HTTP/1.1 302 Found\r\nLocation: http://elsewhere.invalid/x\r\nContent-Length: 0\r\n\r\n";
        let port = server(vec![to_self, "HTTP/1.1 503 No\r\nContent-Length: 2\r\n\r\nno", away]).await;
        let u = url("HTTP", "127.0.0.1", port, "to");
        assert_eq!(get(&u, &[], None).await.unwrap(), Answer { code: 503, body: "no".into() });
        assert_eq!(get(&u, &[], None).await.unwrap().code, 302);
    }

    #[test]
    fn urls() {
        assert_eq!(url("HTTPS", "::1", 1, "/a b?c=d"), "https://[::1]:1/a%20b?c=d");
        let base: Uri = "http://h:1/a/b".parse().unwrap();
        assert_eq!(resolve(&base, "c").unwrap().to_string(), "http://h:1/a/c");
    }
}
