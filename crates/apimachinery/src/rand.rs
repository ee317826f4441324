//! Names' random suffixes, and hashes made safe for names.

/// Letters and digits of random suffixes: no vowels and no `0`, `1`, `3`, so that no words come out.
pub const ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";

/// Length of the suffix that `generateName` gets.
pub const SUFFIX_LENGTH: usize = 5;
/// Longest name that is generated; the prefix is cut to make room for the suffix.
pub const MAX_GENERATED_NAME: usize = 63;

/// A random string of `n` characters, from a source of random numbers.
pub fn string(n: usize, mut random: impl FnMut() -> u32) -> String {
    (0..n).map(|_| char::from(ALPHABET[random() as usize % ALPHABET.len()])).collect()
}

/// A name from a `generateName` prefix.
pub fn generate_name(prefix: &str, random: impl FnMut() -> u32) -> String {
    let mut end = prefix.len().min(MAX_GENERATED_NAME - SUFFIX_LENGTH);
    while !prefix.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}{}", &prefix[..end], string(SUFFIX_LENGTH, random))
}

/// A string (of a hash, mostly) in the alphabet of names.
pub fn safe_encode(s: &str) -> String {
    s.bytes().map(|b| char::from(ALPHABET[usize::from(b) % ALPHABET.len()])).collect()
}

/// The 32-bit FNV-1a hash.
pub fn fnv32a(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |h, b| (h ^ u32::from(*b)).wrapping_mul(0x0100_0193))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let mut n = 0;
        let mut count = || {
            n += 1;
            n
        };
        assert_eq!(string(3, &mut count), "cdf");
        let name = generate_name(&"a".repeat(80), count);
        assert_eq!(name.len(), 63);
        // '1' is 49, and 49 % 27 = 22.
        assert_eq!(safe_encode("1234"), "5678");
        assert_eq!(fnv32a(b""), 0x811c_9dc5);
        assert_eq!(fnv32a(b"a"), 0xe40c_292c);
    }
}
