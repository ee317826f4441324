//! Keys of service account tokens, and JSON Web Signatures made and checked with them.
//!
//! Key files hold what `openssl` and cfssl make: private keys (PKCS#1, SEC 1, PKCS#8), public keys, certificates.

use std::path::Path;

use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    self as sig, EcdsaKeyPair, KeyPair, ParsedPublicKey, RsaKeyPair, UnparsedPublicKey, VerificationAlgorithm,
};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use pilothouse_apimachinery::json::{Value, json};
use sha2::{Digest, Sha256};
use x509_parser::oid_registry::{
    OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_NIST_EC_P384, OID_NIST_EC_P521, OID_PKCS1_RSAENCRYPTION,
};
use x509_parser::pem::Pem;
use x509_parser::prelude::FromDer;
use x509_parser::x509::SubjectPublicKeyInfo;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Rsa,
    P256,
    P384,
    P521,
}

impl Kind {
    fn algorithm(self) -> &'static str {
        match self {
            Kind::Rsa => "RS256",
            Kind::P256 => "ES256",
            Kind::P384 => "ES384",
            Kind::P521 => "ES512",
        }
    }

    fn verifier(self, algorithm: &str) -> Option<&'static dyn VerificationAlgorithm> {
        Some(match (self, algorithm) {
            (Kind::Rsa, "RS256") => &sig::RSA_PKCS1_2048_8192_SHA256,
            (Kind::Rsa, "RS384") => &sig::RSA_PKCS1_2048_8192_SHA384,
            (Kind::Rsa, "RS512") => &sig::RSA_PKCS1_2048_8192_SHA512,
            (Kind::P256, "ES256") => &sig::ECDSA_P256_SHA256_FIXED,
            (Kind::P384, "ES384") => &sig::ECDSA_P384_SHA384_FIXED,
            (Kind::P521, "ES512") => &sig::ECDSA_P521_SHA512_FIXED,
            _ => return None,
        })
    }
}

/// A public key.
#[derive(Debug, Clone)]
pub struct PublicKey {
    /// `kid`: the hash of its DER form, as Kubernetes computes it.
    pub id: String,
    kind: Kind,
    spki: Vec<u8>,
    /// Read once, for the algorithm that this program signs with.
    parsed: ParsedPublicKey,
}

/// The key id of a public key in DER (SubjectPublicKeyInfo).
fn key_id(spki: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(Sha256::digest(spki))
}

impl PublicKey {
    /// From SubjectPublicKeyInfo in DER.
    fn from_spki(spki: &[u8]) -> Result<PublicKey, String> {
        let (_, info) = SubjectPublicKeyInfo::from_der(spki).map_err(|e| e.to_string())?;
        let curve = info.algorithm.parameters.as_ref().and_then(|p| p.as_oid().ok());
        let kind = if info.algorithm.algorithm == OID_PKCS1_RSAENCRYPTION {
            Kind::Rsa
        } else if info.algorithm.algorithm == OID_KEY_TYPE_EC_PUBLIC_KEY {
            match curve {
                Some(c) if c == OID_EC_P256 => Kind::P256,
                Some(c) if c == OID_NIST_EC_P384 => Kind::P384,
                Some(c) if c == OID_NIST_EC_P521 => Kind::P521,
                _ => return Err("unknown elliptic curve".into()),
            }
        } else {
            return Err("neither an RSA nor an ECDSA key".into());
        };
        let verifier = kind.verifier(kind.algorithm()).ok_or("unknown algorithm")?;
        let parsed = ParsedPublicKey::new(verifier, spki).map_err(|e| e.to_string())?;
        Ok(PublicKey { id: key_id(spki), kind, spki: spki.to_vec(), parsed })
    }

    /// Whether the signature is this key's. `algorithm` must be one that fits the key.
    fn verify(&self, algorithm: &str, message: &[u8], signature: &[u8]) -> bool {
        if algorithm == self.kind.algorithm() {
            return self.parsed.verify_sig(message, signature).is_ok();
        }
        self.kind
            .verifier(algorithm)
            .is_some_and(|v| UnparsedPublicKey::new(v, &self.spki).verify(message, signature).is_ok())
    }

    /// The key as a JSON Web Key, for `/openid/v1/jwks`. `None` where it cannot be taken apart.
    pub fn jwk(&self) -> Option<Value> {
        let (_, info) = SubjectPublicKeyInfo::from_der(&self.spki).ok()?;
        let b64 = |b: &[u8]| URL_SAFE_NO_PAD.encode(b);
        let base =
            |kty: &str| json!({"use": "sig", "kty": kty, "kid": self.id, "alg": self.kind.algorithm()});
        match info.parsed().ok()? {
            x509_parser::public_key::PublicKey::RSA(rsa) => {
                let mut v = base("RSA");
                let strip = |b: &[u8]| b64(&b[b.iter().take_while(|x| **x == 0).count()..]);
                v["n"] = json!(strip(rsa.modulus));
                v["e"] = json!(strip(rsa.exponent));
                Some(v)
            }
            x509_parser::public_key::PublicKey::EC(point) => {
                let coordinates = point.data().strip_prefix(&[4])?;
                let (x, y) = coordinates.split_at(coordinates.len() / 2);
                let mut v = base("EC");
                v["crv"] = json!(match self.kind {
                    Kind::P256 => "P-256",
                    Kind::P384 => "P-384",
                    _ => "P-521",
                });
                v["x"] = json!(b64(x));
                v["y"] = json!(b64(y));
                Some(v)
            }
            _ => None,
        }
    }
}

enum Pair {
    Rsa(Box<RsaKeyPair>),
    Ecdsa(Box<EcdsaKeyPair>),
}

/// A private key that signs tokens. It is read once: reading an RSA key takes longer than signing with it.
pub struct SigningKey {
    public: PublicKey,
    pair: Pair,
}

/// Never shows the key.
impl std::fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SigningKey({})", self.public.id)
    }
}

impl SigningKey {
    /// From one PEM block.
    fn from_pem(pem: &Pem) -> Result<SigningKey, String> {
        let der = &pem.contents;
        let ecdsa = || {
            [
                &sig::ECDSA_P256_SHA256_FIXED_SIGNING,
                &sig::ECDSA_P384_SHA384_FIXED_SIGNING,
                &sig::ECDSA_P521_SHA512_FIXED_SIGNING,
            ]
            .into_iter()
            .find_map(|a| EcdsaKeyPair::from_private_key_der(a, der).ok())
        };
        let rsa = match pem.label.as_str() {
            "RSA PRIVATE KEY" => RsaKeyPair::from_der(der).ok(),
            "PRIVATE KEY" => RsaKeyPair::from_pkcs8(der).ok(),
            _ => None,
        };
        let (spki, pair) = if let Some(rsa) = rsa {
            let spki: PublicKeyX509Der<'_> = rsa.public_key().as_der().map_err(|_| "bad RSA key")?;
            (spki.as_ref().to_vec(), Pair::Rsa(Box::new(rsa)))
        } else if let Some(ec) = ecdsa() {
            let spki: PublicKeyX509Der<'_> = ec.public_key().as_der().map_err(|_| "bad ECDSA key")?;
            (spki.as_ref().to_vec(), Pair::Ecdsa(Box::new(ec)))
        } else {
            return Err("data does not contain a valid RSA or ECDSA private key".into());
        };
        Ok(SigningKey { public: PublicKey::from_spki(&spki)?, pair })
    }

    /// Reads the first private key of a file; the error names the file.
    pub fn load(file: &Path) -> Result<SigningKey, String> {
        let text = std::fs::read(file).map_err(|e| format!("{}: {e}", file.display()))?;
        Pem::iter_from_buffer(&text)
            .flatten()
            .find(|p| p.label.ends_with("PRIVATE KEY"))
            .ok_or_else(|| "data does not contain a valid RSA or ECDSA private key".to_string())
            .and_then(|p| Self::from_pem(&p))
            .map_err(|e| format!("error reading private key file {}: {e}", file.display()))
    }

    /// The public half.
    pub fn public(&self) -> &PublicKey {
        &self.public
    }

    /// A signed token with these claims.
    pub fn sign(&self, claims: &Value) -> Result<String, String> {
        let header = json!({"alg": self.public.kind.algorithm(), "kid": self.public.id});
        let b64 = |v: &Value| URL_SAFE_NO_PAD.encode(v.to_string());
        let message = format!("{}.{}", b64(&header), b64(claims));
        let random = SystemRandom::new();
        let signature = match &self.pair {
            Pair::Rsa(rsa) => {
                let mut out = vec![0; rsa.public_modulus_len()];
                rsa.sign(&sig::RSA_PKCS1_SHA256, &random, message.as_bytes(), &mut out)
                    .map_err(|_| "signing failed")?;
                out
            }
            Pair::Ecdsa(ec) => {
                ec.sign(&random, message.as_bytes()).map_err(|_| "signing failed")?.as_ref().to_vec()
            }
        };
        Ok(format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }
}

/// The public keys in PEM text: of public keys, certificates and private keys.
pub fn public_keys(text: &[u8]) -> Result<Vec<PublicKey>, String> {
    let mut out = Vec::new();
    for pem in Pem::iter_from_buffer(text) {
        let pem = pem.map_err(|e| e.to_string())?;
        match pem.label.as_str() {
            "PUBLIC KEY" => out.push(PublicKey::from_spki(&pem.contents)?),
            "CERTIFICATE" => {
                let (_, cert) =
                    x509_parser::parse_x509_certificate(&pem.contents).map_err(|e| e.to_string())?;
                out.push(PublicKey::from_spki(cert.public_key().raw)?);
            }
            "RSA PUBLIC KEY" => {
                let key = aws_lc_rs::rsa::PublicKey::from_der(&pem.contents).map_err(|e| e.to_string())?;
                let spki: PublicKeyX509Der<'_> = key.as_der().map_err(|_| "bad RSA key")?;
                out.push(PublicKey::from_spki(spki.as_ref())?);
            }
            label if label.ends_with("PRIVATE KEY") => out.push(SigningKey::from_pem(&pem)?.public),
            // `EC PARAMETERS` stand before a key and say nothing that the key does not.
            _ => {}
        }
    }
    if out.is_empty() {
        Err("data does not contain any valid RSA or ECDSA public keys".into())
    } else {
        Ok(out)
    }
}

/// The public keys in a file; the error names it.
pub fn public_keys_of_file(file: &Path) -> Result<Vec<PublicKey>, String> {
    let text = std::fs::read(file).map_err(|e| format!("{}: {e}", file.display()))?;
    public_keys(&text).map_err(|e| format!("error reading public key file {}: {e}", file.display()))
}

/// A token taken apart, signature not verified yet.
pub struct Jws<'a> {
    message: &'a str,
    signature: Vec<u8>,
    algorithm: String,
    key_id: String,
    /// The claims, as the token says them.
    pub claims: Value,
}

impl<'a> Jws<'a> {
    /// Takes a token apart; `None` where it is no token of this form.
    pub fn parse(token: &'a str) -> Option<Jws<'a>> {
        let (message, signature) = token.rsplit_once('.')?;
        let (header, payload) = message.split_once('.').filter(|(_, p)| !p.contains('.'))?;
        let json = |part: &str| serde_json::from_slice::<Value>(&URL_SAFE_NO_PAD.decode(part).ok()?).ok();
        let header = json(header)?;
        Some(Jws {
            message,
            signature: URL_SAFE_NO_PAD.decode(signature).ok()?,
            algorithm: header.get("alg")?.as_str()?.to_string(),
            key_id: header.get("kid").and_then(Value::as_str).unwrap_or("").to_string(),
            claims: json(payload)?,
        })
    }

    /// Whether one of the keys made the signature. With a key id only keys of that id are tried, if there are any.
    pub fn verify(&self, keys: &[PublicKey]) -> bool {
        let fits = |k: &&PublicKey| k.id == self.key_id;
        let known = !self.key_id.is_empty() && keys.iter().any(|k| fits(&k));
        keys.iter()
            .filter(|k| !known || fits(k))
            .any(|k| k.verify(&self.algorithm, self.message.as_bytes(), &self.signature))
    }
}

/// Public keys from the JSON Web Key Set of an OpenID provider.
pub fn from_jwks(set: &Value) -> Vec<(String, aws_lc_rs::rsa::PublicKeyComponents<Vec<u8>>)> {
    set.get("keys")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(|k| {
            let part = |f: &str| URL_SAFE_NO_PAD.decode(k.get(f)?.as_str()?).ok();
            let id = k.get("kid").and_then(Value::as_str).unwrap_or("").to_string();
            Some((id, aws_lc_rs::rsa::PublicKeyComponents { n: part("n")?, e: part("e")? }))
        })
        .collect()
}

impl Jws<'_> {
    /// Whether a provider's RSA key made the signature.
    pub fn verify_components(&self, keys: &[(String, aws_lc_rs::rsa::PublicKeyComponents<Vec<u8>>)]) -> bool {
        let parameters = match self.algorithm.as_str() {
            "RS256" => &sig::RSA_PKCS1_2048_8192_SHA256,
            "RS384" => &sig::RSA_PKCS1_2048_8192_SHA384,
            "RS512" => &sig::RSA_PKCS1_2048_8192_SHA512,
            _ => return false,
        };
        keys.iter()
            .filter(|(id, _)| self.key_id.is_empty() || *id == self.key_id)
            .any(|(_, k)| k.verify(parameters, self.message.as_bytes(), &self.signature).is_ok())
    }

    /// The algorithm that the token names.
    pub fn algorithm(&self) -> &str {
        &self.algorithm
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(algorithm: &'static rcgen::SignatureAlgorithm) -> (SigningKey, String) {
        let pair = rcgen::KeyPair::generate_for(algorithm).unwrap();
        let pem = Pem::iter_from_buffer(pair.serialize_pem().as_bytes()).next().unwrap().unwrap();
        (SigningKey::from_pem(&pem).unwrap(), pair.public_key_pem())
    }

    #[test]
    fn signs_and_verifies() {
        for algorithm in
            [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_RSA_SHA256]
        {
            let (signer, public) = key(algorithm);
            let keys = public_keys(public.as_bytes()).unwrap();
            assert_eq!(keys[0].id, signer.public().id);
            let token = signer.sign(&json!({"sub": "x"})).unwrap();
            let jws = Jws::parse(&token).unwrap();
            assert_eq!(jws.claims["sub"], "x");
            assert!(jws.verify(&keys));
            let other = public_keys(key(algorithm).1.as_bytes()).unwrap();
            assert!(!jws.verify(&other));
            // Many keys: the right one is found by its id.
            assert!(jws.verify(&[other, keys.clone()].concat()));
            let changed = token.replacen('.', ".e", 1);
            assert!(Jws::parse(&changed).is_none_or(|j| !j.verify(&keys)));
            assert_eq!(keys[0].jwk().unwrap()["kid"], keys[0].id.as_str());
        }
    }

    #[test]
    fn refuses_other_algorithms() {
        let (signer, public) = key(&rcgen::PKCS_ECDSA_P256_SHA256);
        let keys = public_keys(public.as_bytes()).unwrap();
        let token = signer.sign(&json!({})).unwrap();
        let (_, rest) = token.split_once('.').unwrap();
        for alg in ["none", "HS256", "RS256"] {
            let header = URL_SAFE_NO_PAD.encode(json!({"alg": alg}).to_string());
            assert!(!Jws::parse(&format!("{header}.{rest}")).unwrap().verify(&keys), "{alg}");
        }
        assert!(Jws::parse("bogus").is_none());
        assert!(!format!("{signer:?}").contains("PRIVATE"));
    }
}
