//! Protobuf's wire format: tags, varints, lengths.

use super::Error;

/// Reads a message. Never reads beyond its end and allocates only what is there.
pub(super) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) fn new(rest: &'a [u8]) -> Reader<'a> {
        Reader { rest }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// The next field's number and wire type; nothing at the end.
    pub(super) fn tag(&mut self) -> Result<Option<(u32, u8)>, Error> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let tag = self.varint()?;
        let wire = (tag & 7) as u8;
        match u32::try_from(tag >> 3) {
            Ok(number) if number > 0 && wire != 4 => Ok(Some((number, wire))),
            _ => Err(Error::Tag(tag >> 3, wire)),
        }
    }

    pub(super) fn varint(&mut self) -> Result<u64, Error> {
        let mut value = 0u64;
        for (i, byte) in self.rest.iter().enumerate().take(10) {
            value |= u64::from(byte & 0x7f) << (7 * i as u32);
            if byte & 0x80 == 0 {
                self.rest = &self.rest[i + 1..];
                return Ok(value);
            }
        }
        Err(if self.rest.len() < 10 { Error::Truncated } else { Error::Overflow })
    }

    /// A length and as many bytes.
    pub(super) fn bytes(&mut self) -> Result<&'a [u8], Error> {
        let length = usize::try_from(self.varint()?).map_err(|_| Error::Overflow)?;
        let (head, rest) = self.rest.split_at_checked(length).ok_or(Error::Truncated)?;
        self.rest = rest;
        Ok(head)
    }

    pub(super) fn string(&mut self) -> Result<String, Error> {
        Ok(String::from_utf8_lossy(self.bytes()?).into_owned())
    }

    pub(super) fn fixed64(&mut self) -> Result<u64, Error> {
        let (head, rest) = self.rest.split_first_chunk::<8>().ok_or(Error::Truncated)?;
        self.rest = rest;
        Ok(u64::from_le_bytes(*head))
    }

    /// Skips a value of a wire type. Groups, long gone from protobuf, are errors.
    pub(super) fn skip(&mut self, wire: u8) -> Result<(), Error> {
        match wire {
            0 => self.varint().map(|_| ()),
            1 => self.fixed64().map(|_| ()),
            2 => self.bytes().map(|_| ()),
            5 => {
                self.rest = self.rest.get(4..).ok_or(Error::Truncated)?;
                Ok(())
            }
            other => Err(Error::Tag(0, other)),
        }
    }
}

/// Writes a message.
pub(super) struct Writer {
    out: Vec<u8>,
}

impl Writer {
    pub(super) fn with_capacity(n: usize) -> Writer {
        Writer { out: Vec::with_capacity(n) }
    }

    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.out
    }

    pub(super) fn raw(&mut self, bytes: &[u8]) {
        self.out.extend_from_slice(bytes);
    }

    fn number(&mut self, mut n: u64) {
        while n >= 0x80 {
            self.out.push((n & 0x7f) as u8 | 0x80);
            n >>= 7;
        }
        self.out.push(n as u8);
    }

    pub(super) fn varint(&mut self, number: u32, value: u64) {
        self.number(u64::from(number) << 3);
        self.number(value);
    }

    /// Negative numbers are sign-extended to 64 bits, also 32-bit ones.
    pub(super) fn int(&mut self, number: u32, value: i64) {
        self.varint(number, value.cast_unsigned());
    }

    pub(super) fn double(&mut self, number: u32, value: f64) {
        self.number(u64::from(number) << 3 | 1);
        self.raw(&value.to_bits().to_le_bytes());
    }

    pub(super) fn bytes(&mut self, number: u32, bytes: &[u8]) {
        self.number(u64::from(number) << 3 | 2);
        self.number(bytes.len() as u64);
        self.raw(bytes);
    }

    pub(super) fn string(&mut self, number: u32, s: &str) {
        self.bytes(number, s.as_bytes());
    }

    /// A message within the message. Its length is known when it is written: one byte is kept free for it, and what
    /// is longer makes room.
    pub(super) fn message(&mut self, number: u32, write: impl FnOnce(&mut Writer)) {
        self.number(u64::from(number) << 3 | 2);
        let at = self.out.len();
        self.out.push(0);
        write(self);
        let length = self.out.len() - at - 1;
        if let Ok(short @ 0..=0x7f) = u8::try_from(length) {
            self.out[at] = short;
            return;
        }
        let end = self.out.len();
        self.number(length as u64);
        let extra = self.out.len() - end;
        self.out[at..].rotate_right(extra);
        // The byte that was kept free now stands right behind the length.
        self.out.remove(at + extra);
    }
}
