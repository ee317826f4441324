//! Quantities such as `100m`, `1.5Gi`, `1e3`: parsed, compared, added and printed as
//! `k8s.io/apimachinery/pkg/api/resource` does.

use std::cmp::Ordering;
use std::fmt;

/// Why a text is no quantity. Texts are Kubernetes'.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    /// Not of the form at all.
    #[error("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")]
    Format,
    /// Digits that are no number.
    #[error("unable to parse numeric part of quantity")]
    Numeric,
    /// An unknown suffix.
    #[error("unable to parse quantity's suffix")]
    Suffix,
}

/// Which family of suffixes a quantity is printed with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// `1k`, `100m`.
    #[default]
    DecimalSi,
    /// `1Ki`.
    BinarySi,
    /// `1e3`.
    DecimalExponent,
}

const NANO: i128 = 1_000_000_000;
const MAX: i128 = i64::MAX as i128 * NANO;

/// A quantity: a number in units of 10⁻⁹, and how it is printed.
#[derive(Debug, Clone, Default)]
pub struct Quantity {
    nanos: i128,
    format: Format,
    /// The text it was parsed from, where Kubernetes keeps that.
    text: Option<Box<str>>,
}

struct Parts<'a> {
    negative: bool,
    num: &'a str,
    denom: &'a str,
    suffix: &'a str,
}

fn split(s: &str) -> Result<Parts<'_>, QuantityError> {
    let (negative, rest) = match s.as_bytes().first() {
        Some(b'-') => (true, &s[1..]),
        Some(b'+') => (false, &s[1..]),
        _ => (false, s),
    };
    let digits = |s: &str| s.bytes().take_while(u8::is_ascii_digit).count();
    let rest = rest.trim_start_matches('0');
    let (num, rest) = rest.split_at(digits(rest));
    let num = if num.is_empty() { "0" } else { num };
    let (denom, suffix) = match rest.strip_prefix('.') {
        Some(rest) => rest.split_at(digits(rest)),
        None => ("", rest),
    };
    let letters = suffix.bytes().take_while(|b| b"eEinumkKMGTP".contains(b)).count();
    let tail = &suffix[letters..];
    let tail = tail.strip_prefix(['-', '+']).unwrap_or(tail);
    if digits(tail) != tail.len() {
        return Err(QuantityError::Format);
    }
    Ok(Parts { negative, num, denom, suffix })
}

/// Base, exponent and family of a suffix.
fn interpret(suffix: &str) -> Option<(u32, i32, Format)> {
    Some(match suffix {
        "n" => (10, -9, Format::DecimalSi),
        "u" => (10, -6, Format::DecimalSi),
        "m" => (10, -3, Format::DecimalSi),
        "" => (10, 0, Format::DecimalSi),
        "k" => (10, 3, Format::DecimalSi),
        "M" => (10, 6, Format::DecimalSi),
        "G" => (10, 9, Format::DecimalSi),
        "T" => (10, 12, Format::DecimalSi),
        "P" => (10, 15, Format::DecimalSi),
        "E" => (10, 18, Format::DecimalSi),
        "Ki" => (2, 10, Format::BinarySi),
        "Mi" => (2, 20, Format::BinarySi),
        "Gi" => (2, 30, Format::BinarySi),
        "Ti" => (2, 40, Format::BinarySi),
        "Pi" => (2, 50, Format::BinarySi),
        "Ei" => (2, 60, Format::BinarySi),
        s => {
            let exponent = s.strip_prefix(['e', 'E'])?;
            (10, exponent.parse().ok()?, Format::DecimalExponent)
        }
    })
}

fn pow10(n: u32) -> Option<i128> {
    10i128.checked_pow(n)
}

/// Divides, away from zero.
fn div_up(a: i128, b: i128) -> i128 {
    a / b + (a % b).signum()
}

/// Digits times a power of ten and one of two, in units of 10⁻⁹: away from zero where there is a rest, bounded.
fn scaled(digits: &str, mut exponent: i64, two: u32) -> i128 {
    // 36 digits fit; of the others only whether they are all zero matters.
    let digits = digits.trim_start_matches('0');
    let (head, tail) = digits.split_at(digits.len().min(36));
    exponent += 9 + i64::try_from(tail.len()).unwrap_or(i64::MAX / 2);
    let sticky = tail.bytes().any(|b| b != b'0');
    let mut n: i128 = head.bytes().fold(0, |n, b| n * 10 + i128::from(b - b'0'));
    if n == 0 {
        return 0;
    }
    match n.checked_mul(1i128 << two) {
        Some(m) => n = m,
        None if exponent >= -18 => return i128::MAX,
        None => {
            // Too long a fraction to multiply first: give up digits that are below 10⁻⁹ anyway.
            n /= 10i128.pow(18);
            exponent += 18;
            n = n.saturating_mul(1i128 << two);
        }
    }
    if exponent >= 0 {
        let factor = u32::try_from(exponent).ok().and_then(pow10);
        let n = factor.and_then(|f| n.checked_mul(f)).unwrap_or(i128::MAX);
        n.saturating_add(i128::from(sticky))
    } else {
        match u32::try_from(-exponent).ok().and_then(pow10) {
            Some(divisor) => {
                let exact = n % divisor == 0;
                div_up(n, divisor) + i128::from(exact && sticky)
            }
            None => 1,
        }
    }
}

impl Quantity {
    /// Parses a quantity.
    pub fn parse(s: &str) -> Result<Quantity, QuantityError> {
        if s.is_empty() {
            return Err(QuantityError::Format);
        }
        let p = split(s)?;
        let (base, exponent, format) = interpret(p.suffix).ok_or(QuantityError::Suffix)?;
        let len = |s: &str| i32::try_from(s.len()).unwrap_or(i32::MAX / 4);
        let digits = [p.num, p.denom].concat();
        let scale = i64::from(exponent) - i64::from(len(p.denom));
        // Kubernetes keeps the text of what it can parse the short way, and prints everything else canonically.
        let short = match base {
            10 => len(p.num) + len(p.denom) <= 18 && scale >= -9,
            _ => {
                #[expect(clippy::cast_possible_truncation, reason = "exponents are at most 60")]
                let bits = (exponent as f32 * 3.0 / 10.0) as i32;
                p.denom.is_empty()
                    && len(p.num) + bits < 15
                    && digits.parse::<i64>().is_ok_and(|n| n.checked_mul(1 << exponent).is_some())
            }
        };
        let mut format = format;
        let mut nanos = if base == 10 {
            scaled(&digits, scale, 0)
        } else {
            scaled(&digits, -i64::from(len(p.denom)), u32::try_from(exponent).unwrap_or(0))
        };
        nanos = nanos.min(MAX);
        if !short && format == Format::BinarySi && nanos < NANO && nanos > 0 {
            format = Format::DecimalSi;
        }
        if p.negative {
            nanos = -nanos;
        }
        Ok(Quantity { nanos, format, text: short.then(|| s.into()) })
    }

    /// A whole number.
    pub fn from_value(value: i64, format: Format) -> Quantity {
        Quantity { nanos: i128::from(value) * NANO, format, text: None }
    }

    /// A number of thousandths.
    pub fn from_milli(value: i64, format: Format) -> Quantity {
        Quantity { nanos: i128::from(value) * (NANO / 1000), format, text: None }
    }

    /// How it is printed.
    pub fn format(&self) -> Format {
        self.format
    }

    /// In units of 10⁻⁹.
    pub fn nanos(&self) -> i128 {
        self.nanos
    }

    /// The whole number, rounded up (away from zero).
    pub fn value(&self) -> i64 {
        clamp(div_up(self.nanos, NANO))
    }

    /// The number of thousandths, rounded up (away from zero).
    pub fn milli_value(&self) -> i64 {
        clamp(div_up(self.nanos, NANO / 1000))
    }

    /// As a floating-point number, approximately.
    #[expect(clippy::cast_precision_loss, reason = "approximate by contract")]
    pub fn as_f64(&self) -> f64 {
        self.nanos as f64 / NANO as f64
    }

    /// Whether it is zero.
    pub fn is_zero(&self) -> bool {
        self.nanos == 0
    }

    /// -1, 0 or 1.
    pub fn sign(&self) -> i32 {
        match self.nanos.cmp(&0) {
            Ordering::Less => -1,
            Ordering::Equal => 0,
            Ordering::Greater => 1,
        }
    }

    /// Rounds up to thousandths, as defaults of resource lists do; prints canonically from then on.
    pub fn round_up_to_milli(&mut self) {
        let milli = NANO / 1000;
        self.nanos = div_up(self.nanos, milli).saturating_mul(milli);
        self.text = None;
    }

    /// Adds. Takes the other's format where this one is zero.
    pub fn add(&mut self, other: &Quantity) {
        if self.nanos == 0 {
            self.format = other.format;
        }
        self.nanos = self.nanos.saturating_add(other.nanos);
        self.text = None;
    }

    /// Subtracts. Takes the other's format where this one is zero.
    pub fn sub(&mut self, other: &Quantity) {
        if self.nanos == 0 {
            self.format = other.format;
        }
        self.nanos = self.nanos.saturating_sub(other.nanos);
        self.text = None;
    }

    /// The canonical text: no fraction, the largest suffix that needs none.
    pub fn canonical(&self) -> String {
        if self.nanos == 0 {
            return "0".into();
        }
        let kibi = 1024 * NANO;
        if self.format == Format::BinarySi
            && (self.nanos <= -kibi || self.nanos >= kibi)
            && self.nanos % NANO == 0
        {
            let (mut n, mut exponent) = (self.nanos / NANO, 0);
            while n % 1024 == 0 && exponent < 6 {
                n /= 1024;
                exponent += 1;
            }
            return format!("{n}{}", ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"][exponent]);
        }
        let (mut n, mut exponent) = (self.nanos, -9i32);
        while n % 1000 == 0 && (exponent < 18 || self.format == Format::DecimalExponent) {
            n /= 1000;
            exponent += 3;
        }
        if self.format == Format::DecimalExponent {
            return if exponent == 0 { n.to_string() } else { format!("{n}e{exponent}") };
        }
        let suffix = match exponent {
            -9 => "n",
            -6 => "u",
            -3 => "m",
            0 => "",
            3 => "k",
            6 => "M",
            9 => "G",
            12 => "T",
            15 => "P",
            _ => "E",
        };
        format!("{n}{suffix}")
    }
}

fn clamp(n: i128) -> i64 {
    i64::try_from(n).unwrap_or(if n < 0 { i64::MIN } else { i64::MAX })
}

impl fmt::Display for Quantity {
    /// The text it was parsed from where Kubernetes keeps that, else the canonical text.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.text {
            Some(text) => f.write_str(text),
            None => f.write_str(&self.canonical()),
        }
    }
}

impl std::str::FromStr for Quantity {
    type Err = QuantityError;

    fn from_str(s: &str) -> Result<Quantity, QuantityError> {
        Quantity::parse(s)
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Quantity) -> bool {
        self.nanos == other.nanos
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Quantity) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Quantity) -> Ordering {
        self.nanos.cmp(&other.nanos)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn canonical_forms() {
        for (text, canonical) in [
            ("0", "0"),
            ("0.1", "100m"),
            ("1000m", "1"),
            ("100m", "100m"),
            ("1500m", "1500m"),
            ("1.5Gi", "1536Mi"),
            ("1Gi", "1Gi"),
            ("1024Mi", "1Gi"),
            ("1024", "1024"),
            ("1000", "1k"),
            ("1e3", "1e3"),
            ("1E", "1E"),
            ("12e6", "12e6"),
            ("0.5Mi", "512Ki"),
            ("0.0001Ki", "102400u"),
            ("100Ki", "100Ki"),
            ("1023", "1023"),
            ("0.000000001", "1n"),
            ("0.0000000001", "1n"),
            ("-1", "-1"),
            ("-0.5Gi", "-512Mi"),
            ("+5k", "5k"),
            ("9223372036854775808", "9223372036854775807"),
            ("1.2", "1200m"),
            ("2560Ki", "2560Ki"),
            ("00010", "10"),
        ] {
            assert_eq!(Quantity::parse(text).unwrap().canonical(), canonical, "{text}");
        }
    }

    #[test]
    fn keeps_text_as_kubernetes_does() {
        for (text, printed) in [("1000m", "1000m"), ("1024Mi", "1024Mi"), ("1.5Gi", "1536Mi"), ("0.1", "0.1")]
        {
            assert_eq!(Quantity::parse(text).unwrap().to_string(), printed);
        }
        let mut q = Quantity::parse("0.0005").unwrap();
        q.round_up_to_milli();
        assert_eq!(q.to_string(), "1m");
    }

    #[test]
    fn faults() {
        for (text, fault) in [
            ("", QuantityError::Format),
            ("abc", QuantityError::Format),
            ("1.1.1", QuantityError::Format),
            ("1Kii", QuantityError::Suffix),
            ("1 Gi", QuantityError::Format),
            ("1mm", QuantityError::Suffix),
            ("1e", QuantityError::Suffix),
            ("0x1", QuantityError::Format),
        ] {
            assert_eq!(Quantity::parse(text), Err(fault), "{text}");
        }
    }

    #[test]
    fn arithmetic() {
        let mut a = Quantity::parse("100m").unwrap();
        a.add(&Quantity::parse("1").unwrap());
        assert_eq!(a.to_string(), "1100m");
        a.sub(&Quantity::parse("100m").unwrap());
        assert_eq!(a.to_string(), "1");
        assert_eq!(Quantity::parse("1.1").unwrap().value(), 2);
        assert_eq!(Quantity::parse("1.1").unwrap().milli_value(), 1100);
        assert!(Quantity::parse("1Gi").unwrap() > Quantity::parse("1G").unwrap());
        let mut zero = Quantity::default();
        zero.add(&Quantity::parse("1Ki").unwrap());
        assert_eq!(zero.to_string(), "1Ki");
    }

    proptest! {
        #[test]
        fn canonical_form_is_stable(text in "[+-]?[0-9]{0,25}(\\.[0-9]{0,25})?(n|u|m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei|e-?[0-9]{1,3})?") {
            if let Ok(q) = Quantity::parse(&text) {
                let canonical = q.canonical();
                let again = Quantity::parse(&canonical).unwrap();
                prop_assert_eq!(again.canonical(), canonical);
            }
        }

        #[test]
        fn never_panics(text in ".*") {
            let _ = Quantity::parse(&text);
        }
    }
}
