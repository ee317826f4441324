//! Protobuf as Kubernetes v1.20 writes it into etcd, by hand: field numbers of `k8s.io/api`'s `generated.proto` files
//! (<https://github.com/kubernetes/api/tree/v0.20.2>), so that what reads it here is held against something else than
//! its own writer.

use std::collections::BTreeMap;

/// A message being written.
#[derive(Clone, Default)]
pub(crate) struct Message(Vec<u8>);

fn varint(out: &mut Vec<u8>, mut n: u64) {
    while n >= 0x80 {
        out.push((n & 0x7f) as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

impl Message {
    pub(crate) fn new() -> Message {
        Message::default()
    }

    pub(crate) fn bytes(mut self, field: u64, bytes: impl AsRef<[u8]>) -> Message {
        varint(&mut self.0, field << 3 | 2);
        varint(&mut self.0, bytes.as_ref().len() as u64);
        self.0.extend_from_slice(bytes.as_ref());
        self
    }

    pub(crate) fn text(self, field: u64, text: &str) -> Message {
        self.bytes(field, text)
    }

    pub(crate) fn int(mut self, field: u64, n: i64) -> Message {
        varint(&mut self.0, field << 3);
        varint(&mut self.0, n as u64);
        self
    }

    pub(crate) fn message(self, field: u64, message: Message) -> Message {
        self.bytes(field, message.0)
    }

    /// Entries of a map of texts.
    pub(crate) fn map(self, field: u64, entries: &[(&str, &str)]) -> Message {
        entries.iter().fold(self, |m, (k, v)| m.message(field, Message::new().text(1, k).text(2, v)))
    }

    /// A `Time` or `MicroTime`.
    pub(crate) fn time(self, field: u64, seconds: i64, nanos: i64) -> Message {
        self.message(field, Message::new().int(1, seconds).int(2, nanos))
    }

    /// An `IntOrString` that is a number.
    pub(crate) fn int_or_string(self, field: u64, n: i64) -> Message {
        self.message(field, Message::new().int(1, 0).int(2, n).text(3, ""))
    }

    /// The object as it is stored: `k8s\0` and a `runtime.Unknown`.
    pub(crate) fn object(self, api_version: &str, kind: &str) -> Vec<u8> {
        let unknown = Message::new()
            .message(1, Message::new().text(1, api_version).text(2, kind))
            .bytes(2, self.0)
            .text(3, "")
            .text(4, "");
        [b"k8s\0".as_slice(), &unknown.0].concat()
    }
}

/// When everything here was made: 2021-01-01T00:00:00Z.
pub(crate) const THEN: i64 = 1_609_459_200;

/// An `ObjectMeta`, its empty fields written as gogo-protobuf writes them.
pub(crate) fn meta(namespace: &str, name: &str, labels: &[(&str, &str)]) -> Message {
    Message::new()
        .text(1, name)
        .text(2, "")
        .text(3, namespace)
        .text(4, "")
        .text(5, &uid(name))
        .text(6, "")
        .int(7, 1)
        .time(8, THEN, 0)
        .map(11, labels)
        .text(15, "")
}

/// The uid that [`meta`] gives.
pub(crate) fn uid(name: &str) -> String {
    format!(
        "00000000-0000-4000-8000-{:012x}",
        name.bytes().fold(7u64, |a, b| a * 31 % 0xffff_ffff + u64::from(b))
    )
}

/// Fields of a message, read without a schema: by number, in order.
pub(crate) fn fields(mut bytes: &[u8]) -> BTreeMap<u64, Vec<Vec<u8>>> {
    fn number(bytes: &mut &[u8]) -> u64 {
        let (mut n, mut shift) = (0u64, 0);
        loop {
            let (first, rest) = bytes.split_first().expect("a number ends");
            *bytes = rest;
            n |= u64::from(first & 0x7f) << shift;
            if first & 0x80 == 0 {
                return n;
            }
            shift += 7;
        }
    }
    let mut out: BTreeMap<u64, Vec<Vec<u8>>> = BTreeMap::new();
    while !bytes.is_empty() {
        let tag = number(&mut bytes);
        let value = match tag & 7 {
            0 => number(&mut bytes).to_be_bytes().to_vec(),
            2 => {
                let length = number(&mut bytes) as usize;
                let (value, rest) = bytes.split_at(length);
                bytes = rest;
                value.to_vec()
            }
            other => panic!("wire type {other}"),
        };
        out.entry(tag >> 3).or_default().push(value);
    }
    out
}
