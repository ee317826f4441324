//! One key of one provider: how a value is sealed and opened
//! (<https://kubernetes.io/docs/tasks/administer-cluster/encrypt-data/>).

use aws_lc_rs::aead::{self, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::cipher::{
    self, DecryptionContext, PaddedBlockDecryptingKey, PaddedBlockEncryptingKey, UnboundCipherKey,
};
use aws_lc_rs::iv::FixedLength;
use crypto_secretbox::aead::{Aead, KeyInit};
use crypto_secretbox::{Nonce as BoxNonce, XSalsa20Poly1305};

const BLOCK: usize = 16;
const GCM_NONCE: usize = 12;
const BOX_NONCE: usize = 24;

/// What is done to values.
pub enum Cipher {
    /// Nothing.
    Identity,
    /// AES-CBC with PKCS #7 padding, a random vector in front.
    AesCbc(Vec<u8>),
    /// AES-GCM, a random nonce in front; the value's key in the store is authenticated with it.
    AesGcm(LessSafeKey),
    /// XSalsa20 and Poly1305, a random nonce in front.
    SecretBox(XSalsa20Poly1305),
}

/// A provider's key.
pub struct Transformer {
    /// `k8s:enc:aescbc:v1:key1:`; empty for [`Cipher::Identity`].
    pub prefix: String,
    /// The cipher.
    pub cipher: Cipher,
}

/// What every encrypted value begins with.
pub const ENCRYPTED: &str = "k8s:enc:";

fn failed<E>(_: E) -> String {
    "cipher: message authentication failed".into()
}

fn cbc(secret: &[u8]) -> Result<UnboundCipherKey, String> {
    let algorithm = match secret.len() {
        16 => &cipher::AES_128,
        24 => &cipher::AES_192,
        _ => &cipher::AES_256,
    };
    UnboundCipherKey::new(algorithm, secret).map_err(|e| e.to_string())
}

impl Transformer {
    /// No encryption.
    pub fn identity() -> Transformer {
        Transformer { prefix: String::new(), cipher: Cipher::Identity }
    }

    /// A key of `aescbc`, `aesgcm` or `secretbox`. Errors name lengths only, never keys.
    pub fn new(provider: &str, name: &str, secret: &[u8]) -> Result<Transformer, String> {
        let wanted: &[usize] = if provider == "secretbox" { &[32] } else { &[16, 24, 32] };
        if !wanted.contains(&secret.len()) {
            return Err(format!(
                "could not obtain secret for named key {name}: expected key size {wanted:?} for {provider} provider, got {}",
                secret.len()
            ));
        }
        let cipher = match provider {
            "aescbc" => Cipher::AesCbc(secret.to_vec()),
            "aesgcm" => {
                let algorithm = match secret.len() {
                    16 => &aead::AES_128_GCM,
                    24 => &aead::AES_192_GCM,
                    _ => &aead::AES_256_GCM,
                };
                Cipher::AesGcm(LessSafeKey::new(
                    UnboundKey::new(algorithm, secret).map_err(|e| e.to_string())?,
                ))
            }
            _ => Cipher::SecretBox(XSalsa20Poly1305::new_from_slice(secret).map_err(|e| e.to_string())?),
        };
        Ok(Transformer { prefix: format!("{ENCRYPTED}{provider}:v1:{name}:"), cipher })
    }

    /// The stored form of a value under a key of the store.
    pub fn seal(&self, key: &[u8], value: &[u8]) -> Result<Vec<u8>, String> {
        let prefix = self.prefix.as_bytes();
        match &self.cipher {
            Cipher::Identity => Ok(value.to_vec()),
            Cipher::AesCbc(secret) => {
                let mut sealed = value.to_vec();
                let context = PaddedBlockEncryptingKey::cbc_pkcs7(cbc(secret)?)
                    .and_then(|k| k.encrypt(&mut sealed))
                    .map_err(failed)?;
                let DecryptionContext::Iv128(vector) = &context else { return Err("no vector".into()) };
                let vector: &[u8; BLOCK] = vector.as_ref();
                Ok([prefix, vector, &sealed].concat())
            }
            Cipher::AesGcm(secret) => {
                let nonce: [u8; GCM_NONCE] = rand::random();
                let mut sealed = value.to_vec();
                secret
                    .seal_in_place_append_tag(
                        Nonce::assume_unique_for_key(nonce),
                        Aad::from(key),
                        &mut sealed,
                    )
                    .map_err(failed)?;
                Ok([prefix, &nonce, &sealed].concat())
            }
            Cipher::SecretBox(secret) => {
                let nonce: [u8; BOX_NONCE] = rand::random();
                let sealed = secret.encrypt(BoxNonce::from_slice(&nonce), value).map_err(failed)?;
                Ok([prefix, &nonce, &sealed].concat())
            }
        }
    }

    /// The value of a stored form that begins with this key's prefix.
    pub fn open(&self, key: &[u8], stored: &[u8]) -> Result<Vec<u8>, String> {
        let body = stored.strip_prefix(self.prefix.as_bytes()).ok_or("no matching prefix found")?;
        let short = "the stored data was shorter than the required size";
        match &self.cipher {
            Cipher::Identity if stored.starts_with(ENCRYPTED.as_bytes()) => {
                Err("identity transformer tried to read encrypted data".into())
            }
            Cipher::Identity => Ok(stored.to_vec()),
            Cipher::AesCbc(secret) => {
                let (vector, sealed) = body.split_at_checked(BLOCK).ok_or(short)?;
                let vector: [u8; BLOCK] = vector.try_into().map_err(|_| short)?;
                let mut sealed = sealed.to_vec();
                let context = DecryptionContext::Iv128(FixedLength::from(vector));
                let opened = PaddedBlockDecryptingKey::cbc_pkcs7(cbc(secret)?).map_err(failed)?;
                Ok(opened.decrypt(&mut sealed, context).map_err(|_| "invalid padding on input")?.to_vec())
            }
            Cipher::AesGcm(secret) => {
                let (nonce, sealed) = body.split_at_checked(GCM_NONCE).ok_or(short)?;
                let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(failed)?;
                let mut sealed = sealed.to_vec();
                let opened = secret.open_in_place(nonce, Aad::from(key), &mut sealed).map_err(failed)?;
                Ok(opened.to_vec())
            }
            Cipher::SecretBox(secret) => {
                let (nonce, sealed) = body.split_at_checked(BOX_NONCE).ok_or(short)?;
                secret.decrypt(BoxNonce::from_slice(nonce), sealed).map_err(failed)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::cipher::EncryptionContext;

    use super::*;

    const KEY: &[u8] = b"/registry/secrets/default/a";

    #[test]
    fn what_is_sealed_can_be_opened() {
        for (provider, length) in [
            ("aescbc", 16),
            ("aescbc", 24),
            ("aescbc", 32),
            ("aesgcm", 16),
            ("aesgcm", 24),
            ("aesgcm", 32),
            ("secretbox", 32),
        ] {
            let t = Transformer::new(provider, "k", &vec![7; length]).unwrap();
            for value in [&b""[..], b"x", &[3; 15], &[3; 16], &[3; 4000]] {
                let stored = t.seal(KEY, value).unwrap();
                assert!(stored.starts_with(format!("k8s:enc:{provider}:v1:k:").as_bytes()));
                assert_eq!(t.open(KEY, &stored).unwrap(), value, "{provider} {length}");
                assert_ne!(t.seal(KEY, value).unwrap(), stored, "each time another vector");
                let mut bent = stored.clone();
                *bent.last_mut().unwrap() ^= 1;
                if provider != "aescbc" {
                    assert!(t.open(KEY, &bent).is_err());
                }
                assert!(t.open(KEY, &stored[..t.prefix.len() + 3]).is_err());
            }
        }
    }

    #[test]
    fn a_value_of_gcm_belongs_to_its_key() {
        let t = Transformer::new("aesgcm", "k", &[1; 32]).unwrap();
        let stored = t.seal(KEY, b"v").unwrap();
        assert!(t.open(b"/registry/secrets/default/b", &stored).is_err());
    }

    #[test]
    fn identity_reads_nothing_encrypted() {
        let t = Transformer::identity();
        assert_eq!(t.open(KEY, b"{}").unwrap(), b"{}");
        assert!(t.open(KEY, b"k8s:enc:aescbc:v1:k:...").unwrap_err().contains("encrypted data"));
    }

    /// Made with Go's `crypto/aes` form: vector, then blocks. The key is 16 times 0x2b…, the vector 0..15.
    #[test]
    fn aescbc_has_gos_form() {
        // NIST SP 800-38A, F.2.1: the first block of CBC-AES128.
        let key = hex("2b7e151628aed2a6abf7158809cf4f3c");
        let vector = hex("000102030405060708090a0b0c0d0e0f");
        let plain = hex("6bc1bee22e409f96e93d7e117393172a");
        let t = Transformer::new("aescbc", "k", &key).unwrap();
        // The block's cipher text is the standard's; a whole block of padding follows it.
        let mut sealed = plain.clone();
        let context = EncryptionContext::Iv128(FixedLength::from(<[u8; 16]>::try_from(&vector[..]).unwrap()));
        PaddedBlockEncryptingKey::cbc_pkcs7(cbc(&key).unwrap())
            .unwrap()
            .less_safe_encrypt(&mut sealed, context)
            .unwrap();
        assert_eq!(sealed[..16], hex("7649abac8119b246cee98e9b12e9197d"));
        let stored = [t.prefix.as_bytes(), &vector, &sealed].concat();
        assert_eq!(t.open(KEY, &stored).unwrap(), plain);
    }

    fn hex(text: &str) -> Vec<u8> {
        (0..text.len() / 2).map(|i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).unwrap()).collect()
    }

    #[test]
    fn keys_have_sizes() {
        assert!(Transformer::new("secretbox", "k", &[0; 16]).err().unwrap().contains("got 16"));
        assert!(Transformer::new("aescbc", "k", &[0; 15]).is_err());
    }
}
