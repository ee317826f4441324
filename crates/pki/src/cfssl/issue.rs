//! Making keys and certificates: `gencert`, `genkey`, `sign`, `selfsign`. What they print is one line of JSON with the
//! PEM texts, for cfssljson.

use std::path::Path;

use rcgen::{CertificateParams, KeyPair};
use serde::Serialize;
use time::OffsetDateTime;
use x509_parser::prelude::X509Certificate;

use super::args::Args;
use super::config::Policy;
use super::request::{self, Key, Request};
use super::{Fault, SIGNING, argument, log, read};
use crate::authority::{Authority, serial};
use crate::names::{self, Asked};

/// Authority and certificate made for the same time one after the other: that is nothing to warn of. In seconds.
const A_DAY: i64 = 86_400;

#[derive(Debug, Default, Serialize)]
struct Output {
    #[serde(skip_serializing_if = "Option::is_none")]
    cert: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    csr: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
}

impl Output {
    fn text(&self) -> Result<String, Fault> {
        serde_json::to_string(self).map(|s| s + "\n").map_err(|e| Fault::Input(e.to_string()))
    }
}

/// `cfssl gencert`: a key and a certificate for it.
pub(super) fn gencert(args: &[String]) -> Result<String, Fault> {
    let args = Args::parse(&[SIGNING, &[("initca", false)]].concat(), args)?;
    let path = argument(&args, "the request (a JSON file)")?;
    if args.has("initca") {
        let request = Request::parse(&read(path)?, path)?;
        return initca(&request, path, Some(args.get("ca-key")).filter(|k| !k.is_empty()))?.text();
    }
    let signer = Signer::from_args(&args)?;
    let request = Request::parse(&read(path)?, path)?;
    let hosts = hostnames(&args);
    let mut params = request.params(&hosts, path)?;
    let (key, csr, subject) = make_key(&request, &params, path)?;
    if params.subject_alt_names.is_empty() {
        log(
            "WARNING",
            "This certificate has no \"hosts\": it says who a client is, and is of no use to a server",
        );
    }
    params.key_identifier_method = request::key_identifier(&key.pair);
    signer.policy.apply(&mut params, OffsetDateTime::now_utc())?;
    let cert = signer.authority.certify(params, &key.pair, &subject)?;
    signer.check(&cert)?;
    Output { cert: Some(cert), csr: Some(csr), key: Some(key.pem) }.text()
}

/// `cfssl genkey`: a key and a request for it, or with `-initca` a certificate authority.
pub(super) fn genkey(args: &[String]) -> Result<String, Fault> {
    let args = Args::parse(&[("initca", false)], args)?;
    let path = argument(&args, "the request (a JSON file)")?;
    let request = Request::parse(&read(path)?, path)?;
    if args.has("initca") {
        return initca(&request, path, None)?.text();
    }
    let params = request.params(&[], path)?;
    let (key, csr, _) = make_key(&request, &params, path)?;
    Output { cert: None, csr: Some(csr), key: Some(key.pem) }.text()
}

/// `cfssl sign`: a certificate for a request in PEM.
pub(super) fn sign(args: &[String]) -> Result<String, Fault> {
    let args = Args::parse(&[SIGNING, &[("csr", true)]].concat(), args)?;
    let path = match args.get("csr") {
        "" => argument(&args, "the request (a PEM file)")?,
        path => path,
    };
    let signer = Signer::from_args(&args)?;
    let Asked { mut params, key, subject } = names::asked(&read(path)?)
        .map_err(|e| Fault::Input(format!("{path}: not a certificate request: {e}")))?;
    let hosts = hostnames(&args);
    if !hosts.is_empty() {
        params.subject_alt_names = request::alternative_names(&hosts).map_err(Fault::Input)?;
    }
    params.key_identifier_method = request::key_identifier(&key);
    signer.policy.apply(&mut params, OffsetDateTime::now_utc())?;
    let cert = signer.authority.certify(params, &key, &subject)?;
    signer.check(&cert)?;
    Output { cert: Some(cert), ..Output::default() }.text()
}

/// `cfssl selfsign`: a key and a certificate that it signs itself.
pub(super) fn selfsign(args: &[String]) -> Result<String, Fault> {
    let args = Args::parse(&[("config", true), ("profile", true)], args)?;
    let [host, path] = args.rest.as_slice() else {
        return Err(Fault::Usage("selfsign: a host name and a request (a JSON file) are needed".into()));
    };
    let policy = policy(&args)?;
    let request = Request::parse(&read(path)?, path)?;
    let mut params = request.params(std::slice::from_ref(host), path)?;
    let (key, csr, subject) = make_key(&request, &params, path)?;
    params.key_identifier_method = request::key_identifier(&key.pair);
    policy.apply(&mut params, OffsetDateTime::now_utc())?;
    params.serial_number = Some(serial()?);
    let made = params.self_signed(&key.pair)?;
    let cert = names::certificate(&made, &subject, &subject, &key.pair)?;
    Output { cert: Some(cert), csr: Some(csr), key: Some(key.pem) }.text()
}

/// A certificate authority's own certificate: with a new key, or with the one in `key_path`, which is then not printed.
fn initca(request: &Request, path: &str, key_path: Option<&str>) -> Result<Output, Fault> {
    let mut params = request.params(&[], path)?;
    let (pair, csr, key) = match key_path {
        None => {
            log("INFO", "generating a new CA key and certificate from CSR");
            let (key, csr, _) = make_key(request, &params, path)?;
            (key.pair, csr, Some(key.pem))
        }
        Some(key_path) => {
            let pair = KeyPair::from_pem(&read(key_path)?)
                .map_err(|e| Fault::Input(format!("{key_path}: not a private key: {e}")))?;
            log("INFO", "re-generating a CA certificate from CSR and CA key");
            let csr = names::request(&params, &request.subject(path)?, &pair)?;
            (pair, csr, None)
        }
    };
    let ca = request.ca.as_ref();
    let policy = Policy::authority(
        ca.map_or("", |c| &c.expiry),
        ca.map_or("", |c| &c.backdate),
        ca.and_then(|c| c.path()),
    )
    .map_err(|e| Fault::Input(format!("{path}: ca: {e}")))?;
    policy.apply(&mut params, OffsetDateTime::now_utc())?;
    params.key_identifier_method = request::key_identifier(&pair);
    params.serial_number = Some(serial()?);
    let subject = request.subject(path)?;
    let cert = names::certificate(&params.self_signed(&pair)?, &subject, &subject, &pair)?;
    with_certificate(&cert, announce)?;
    Ok(Output { cert: Some(cert), csr: Some(csr), key })
}

/// The key of a request, the PEM request for it, and its subject as it is written.
fn make_key(
    request: &Request,
    params: &CertificateParams,
    path: &str,
) -> Result<(Key, String, Vec<u8>), Fault> {
    let subject = request.subject(path)?;
    let key = request.key(path)?;
    log("INFO", &format!("generated key: {}", key.kind));
    let csr = names::request(params, &subject, &key.pair)?;
    Ok((key, csr, subject))
}

/// Who signs, and how.
struct Signer {
    authority: Authority,
    policy: Policy,
}

impl Signer {
    fn from_args(args: &Args) -> Result<Signer, Fault> {
        let (cert, key) = (args.need("ca")?, args.need("ca-key")?);
        let policy = policy(args)?;
        let authority = Authority::load(Path::new(cert), Path::new(key))?;
        let is_ca = with_certificate(authority.certificate(), |c| c.is_ca())?;
        if !is_ca {
            return Err(Fault::Input(format!("{cert}: not the certificate of an authority")));
        }
        Ok(Signer { authority, policy })
    }

    /// Says what was signed.
    fn check(&self, cert: &str) -> Result<(), Fault> {
        let late = with_certificate(cert, |c| {
            announce(c);
            let own_end = self.authority.expires_at().map(|t| t.unix_timestamp());
            own_end.is_ok_and(|end| c.validity().not_after.timestamp() > end + A_DAY)
        })?;
        if late {
            log("WARNING", "the certificate ends after its authority's own");
        }
        Ok(())
    }
}

fn policy(args: &Args) -> Result<Policy, Fault> {
    match args.get("config") {
        "" => Ok(Policy::standard()),
        path => Policy::from_config(&read(path)?, path, args.get("profile")),
    }
}

fn hostnames(args: &Args) -> Vec<String> {
    args.get("hostname").split(',').filter(|h| !h.is_empty()).map(String::from).collect()
}

fn announce(cert: &X509Certificate) {
    log("INFO", &format!("signed certificate with serial number {}", cert.serial));
}

/// Calls `f` with a certificate that this program has made or checked.
fn with_certificate<T>(pem: &str, f: impl FnOnce(&X509Certificate) -> T) -> Result<T, Fault> {
    let bad = |e: String| Fault::Input(format!("certificate: {e}"));
    let (_, pem) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).map_err(|e| bad(e.to_string()))?;
    let cert = pem.parse_x509().map_err(|e| bad(e.to_string()))?;
    Ok(f(&cert))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_authority_and_a_server() {
        let dir = tempfile::tempdir().unwrap();
        let path = |n: &str| dir.path().join(n).display().to_string();
        let put = |n: &str, text: &str| {
            std::fs::write(dir.path().join(n), text).unwrap();
            path(n)
        };
        let run = |f: fn(&[String]) -> Result<String, Fault>, args: &[&str]| {
            f(&args.iter().map(|a| a.to_string()).collect::<Vec<_>>())
        };
        let ca_csr = put(
            "ca-csr.json",
            r#"{"CN": "kubernetes", "key": {"algo": "rsa", "size": 2048},
            "names": [{"C": "CN", "L": "Beijing", "ST": "Beijing", "O": "k8s", "OU": "System"}],
            "ca": {"expiry": "87600h"}}"#,
        );
        let ca: serde_json::Value =
            serde_json::from_str(&run(gencert, &["-initca", &ca_csr]).unwrap()).unwrap();
        let (ca_pem, ca_key) =
            (put("ca.pem", ca["cert"].as_str().unwrap()), put("ca-key.pem", ca["key"].as_str().unwrap()));
        with_certificate(ca["cert"].as_str().unwrap(), |c| {
            assert_eq!(
                c.subject().to_string(),
                "C=CN, ST=Beijing, L=Beijing, O=k8s, OU=System, CN=kubernetes"
            );
            assert!(c.is_ca());
            let hours = (c.validity().not_after.timestamp() - c.validity().not_before.timestamp()) / 3600;
            assert_eq!(hours, 87_600);
        })
        .unwrap();

        let config = put("ca-config.json", super::super::config::DEFAULT);
        let server = put(
            "server-csr.json",
            r#"{"CN": "kubernetes", "hosts": ["10.0.0.1", "kubernetes.default"], "key": {"algo": "rsa", "size": 2048},
            "names": [{"O": "k8s"}]}"#,
        );
        let signing =
            ["-ca", &ca_pem, "-ca-key", &ca_key, &format!("-config={config}"), "-profile=kubernetes"];
        let made = run(gencert, &[&signing[..], &[&server]].concat()).unwrap();
        let made: serde_json::Value = serde_json::from_str(&made).unwrap();
        with_certificate(made["cert"].as_str().unwrap(), |c| {
            with_certificate(ca["cert"].as_str().unwrap(), |ca| {
                c.verify_signature(Some(ca.public_key())).unwrap();
            })
            .unwrap();
            let eku = c.extended_key_usage().unwrap().unwrap();
            assert!(eku.value.client_auth && eku.value.server_auth && !c.is_ca());
            assert_eq!(c.subject_alternative_name().unwrap().unwrap().value.general_names.len(), 2);
        })
        .unwrap();

        let csr = put("server.csr", made["csr"].as_str().unwrap());
        let signed = run(sign, &[&signing[..], &["-hostname=a.b", &csr]].concat()).unwrap();
        assert!(signed.starts_with("{\"cert\":\"-----BEGIN CERTIFICATE-----\\n") && signed.ends_with("}\n"));

        // Groups are values of one kind; Go's programs put them into one set, and so do their authorities.
        let groups = put(
            "groups.json",
            r#"{"CN": "jane", "names": [{"O": "ops", "OU": "a"}, {"O": "dev"}, {"O": "büro"}], "ca": {"expiry": "1h"}}"#,
        );
        let organizations = |pem: &str| {
            with_certificate(pem, |c| {
                let all = c.subject().iter_organization().map(|o| o.as_str().unwrap().to_string());
                (all.collect::<Vec<_>>(), c.subject().iter_rdn().count(), c.subject().as_raw().to_vec())
            })
            .unwrap()
        };
        let json = |text: String| serde_json::from_str::<serde_json::Value>(&text).unwrap();
        let own = json(run(gencert, &["-initca", &groups]).unwrap());
        let (own_pem, own_key) =
            (put("own.pem", own["cert"].as_str().unwrap()), put("own-key.pem", own["key"].as_str().unwrap()));
        let (found, sets, name) = organizations(own["cert"].as_str().unwrap());
        assert_eq!((found, sets), (["dev", "ops", "büro"].map(String::from).to_vec(), 3));
        let by_own = ["-ca", &own_pem, "-ca-key", &own_key];
        let asked = put("groups.csr", json(run(genkey, &[&groups]).unwrap())["csr"].as_str().unwrap());
        for made in
            [run(gencert, &[&by_own[..], &[&groups]].concat()), run(sign, &[&by_own[..], &[&asked]].concat())]
        {
            let made = json(made.unwrap());
            let pem = made["cert"].as_str().unwrap();
            assert_eq!(organizations(pem).2, name);
            with_certificate(pem, |c| {
                assert_eq!(c.issuer().as_raw(), name);
                with_certificate(own["cert"].as_str().unwrap(), |ca| {
                    c.verify_signature(Some(ca.public_key())).unwrap();
                })
                .unwrap();
            })
            .unwrap();
        }

        let other: serde_json::Value = serde_json::from_str(&run(genkey, &[&server]).unwrap()).unwrap();
        let other_key = put("other-key.pem", other["key"].as_str().unwrap());
        let e = run(gencert, &["-ca", &ca_pem, "-ca-key", &other_key, &server]).unwrap_err().to_string();
        assert!(e.contains("ca.pem") && e.contains("other-key.pem"), "{e}");
        let leaf = put("leaf.pem", made["cert"].as_str().unwrap());
        let leaf_key = put("leaf-key.pem", made["key"].as_str().unwrap());
        let e = run(gencert, &["-ca", &leaf, "-ca-key", &leaf_key, &server]).unwrap_err().to_string();
        assert!(e.ends_with("leaf.pem: not the certificate of an authority"), "{e}");
        let e = run(gencert, &["-ca", &ca_pem, "-ca-key", &path("none"), &server]).unwrap_err().to_string();
        assert!(e.contains("none: No such file"), "{e}");
    }
}
